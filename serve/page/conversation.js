// What the page shows is built here from `props.value` and never by a template: Gradio runs what templates make of words.
const log = element.querySelector('.turns'), enlarged = element.querySelector('.enlarged');
const made = new Map();  // id of a turn -> {article, of: what it shows, by part}
const PATHS = {
  copy: 'M9 9h11v11H9zM5 15H4V4h11v1', edit: 'M12 20h9M16.5 3.5l4 4L8 20l-5 1 1-5z', retry: 'M3 12a9 9 0 1 0 3-6.7L3 8M3 3v5h5',
  undo: 'M9 14 4 9l5-5M4 9h11a5 5 0 0 1 0 10h-4', like: 'M7 11v10H3V11zM7 11l4-8a3 3 0 0 1 3 3v4h6l-1.5 9a2 2 0 0 1-2 2H7',
  dislike: 'M17 13V3h4v10zM17 13l-4 8a3 3 0 0 1-3-3v-4H4l1.500-9a2 2 0 0 1 2-2H17', look: 'M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6',
  done: 'M4 12l6 6L20 6', close: 'M5 5l14 14M19 5 5 19',
};

function make(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  for (const [key, value] of Object.entries({viewBox: '0 0 24 24', fill: 'none', stroke: 'currentColor', 'stroke-width': 2,
    'stroke-linecap': 'round', 'stroke-linejoin': 'round', 'aria-hidden': 'true'})) svg.setAttribute(key, value);
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', PATHS[name]);
  svg.append(path);
  return svg;
}

function button(name, does, more = {}) {
  const label = props.value.words[name];
  const one = make('button', {type: 'button', 'aria-label': label, title: label, 'data-action': name, ...more}, icon(name));
  one.addEventListener('click', () => does(one));
  return one;
}

async function copy(text, one) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not over plain http
    const area = make('textarea', {style: 'position: fixed; opacity: 0'});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  one.replaceChildren(icon('done'));
  setTimeout(() => one.replaceChildren(icon('copy')), 1500);
}

function form(words, text, label, send, taken, ended) {
  const area = make('textarea', {rows: 2, 'aria-label': label});
  area.value = text;
  const cancel = make('button', {type: 'button'}, words.cancel);
  const asked = make('form', {}, make('label', {}, label, area), make('div', {class: 'row'}, cancel, make('button', {type: 'submit'}, send)));
  asked.addEventListener('submit', (event) => { event.preventDefault(); taken(area.value); });
  cancel.addEventListener('click', ended);
  asked.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') { event.stopPropagation(); ended(); }
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); taken(area.value); }
  });
  return asked;
}
// At once: what is typed next belongs there.
const append = (article, asked) => { article.append(asked); asked.querySelector('textarea').focus(); };

function enlarge(picture) {
  const close = enlarged.querySelector('.close');
  close.setAttribute('aria-label', props.value.words.close);
  close.replaceChildren(icon('close'));
  enlarged.querySelector('img').src = picture.url;
  enlarged.querySelector('img').alt = picture.name;
  enlarged.setAttribute('aria-label', picture.name);
  enlarged.showModal();
}
enlarged.addEventListener('click', () => enlarged.close());

function pictures(turn) {
  return turn.pictures.map((one) => {
    const shown = make('button', {type: 'button', 'aria-label': `${props.value.words.enlarge} ${one.name}`},
      make('img', {src: one.url, alt: one.name, loading: 'lazy'}));
    shown.addEventListener('click', () => enlarge(one));
    return shown;
  });
}

function actions(turn, article) {
  const {words, busy} = props.value, off = busy ? '' : null;
  if (turn.role === 'user') {
    const edit = button('edit', () => {
      const bubble = article.querySelector('.bubble');
      const end = () => { asked.remove(); bubble.hidden = false; article.querySelector('.actions').hidden = false; };
      const asked = form(words, turn.text, words.edit, words.send, (text) => { end(); trigger('edit', {turn: turn.id, text}); }, end);
      bubble.hidden = article.querySelector('.actions').hidden = true;
      append(article, asked);
    }, {disabled: off});
    return turn.text ? [edit, button('copy', (one) => copy(turn.text, one))] : [edit];
  }
  const found = [];
  if (turn.text) found.push(button('copy', (one) => copy(turn.text, one)));
  if (turn.last) {
    found.push(button('retry', () => trigger('retry', {turn: turn.id}), {disabled: off}));
    found.push(button('undo', () => trigger('undo', {turn: turn.id}), {disabled: off}));
  }
  if (!turn.refused) {
    found.push(button('like', () => trigger('like', {turn: turn.id, rating: turn.rating === 1 ? 0 : 1}), {'aria-pressed': turn.rating === 1}));
    found.push(button('dislike', () => {
      trigger('like', {turn: turn.id, rating: turn.rating === -1 ? 0 : -1});
      if (turn.rating !== -1) correct(turn, article);
    }, {'aria-pressed': turn.rating === -1}));
    if (props.value.inside) found.push(button('look', () => trigger('select', {turn: turn.id})));
  }
  return found;
}

function correct(turn, article) {
  article.querySelector('form')?.remove();
  const {words} = props.value;
  const end = () => asked.remove();
  const asked = form(words, turn.correction || turn.text, words.correct, words.save,
    (text) => { end(); trigger('submit', {turn: turn.id, text}); }, end);
  append(article, asked);
}

// Changes a part of a turn where it shows something else than before, and nothing else: a selection or a form stays.
function part(known, name, what, build) {
  const key = JSON.stringify(what);
  if (known.of[name] !== key) {
    known.of[name] = key;
    build();
  }
}

function show(turn) {
  let known = made.get(turn.id);
  if (!known) {
    const article = make('article', {class: turn.role === 'user' ? 'user-row' : 'bot-row'},
      make('div', {class: 'bubble'}, make('div', {class: 'pictures'}), make('div', {class: 'message-content'})),
      make('div', {class: 'facts'}), make('div', {class: 'actions'}));
    made.set(turn.id, known = {article, of: {}});
  }
  const {article} = known, {words} = props.value;
  const [shown, content, facts, does] = ['.pictures', '.message-content', '.facts', '.actions'].map((one) => article.querySelector(one));
  article.classList.toggle('refused', !!turn.refused);
  article.setAttribute('aria-label', words[turn.role]);
  part(known, 'pictures', turn.pictures, () => { shown.replaceChildren(...pictures(turn)); shown.hidden = !turn.pictures.length; });
  part(known, 'content', [turn.html, turn.text, turn.refused, turn.waiting], () => {
    if (turn.role === 'user') content.textContent = turn.text;
    else content.innerHTML = turn.html;  // made by the server of Markdown, without HTML of the model's own
    if (turn.refused) content.append(make('b', {}, words.refused), turn.refused);
    if (turn.waiting) content.replaceChildren(make('span', {class: 'waiting'}, turn.waiting));
    content.hidden = turn.role === 'user' && !turn.text;
  });
  part(known, 'facts', [turn.facts, turn.unsure], () => {
    facts.replaceChildren(...(turn.unsure ? [make('span', {class: 'unsure'}, turn.unsure), ' · '] : []), turn.facts || '');
    facts.hidden = !(turn.facts || turn.unsure);
  });
  part(known, 'actions', [turn.text, turn.last, turn.rating, turn.correction, turn.growing, turn.refused, props.value.busy, props.value.inside, words], () => {
    const focused = does.contains(document.activeElement) && document.activeElement.dataset.action;
    does.replaceChildren(...(turn.growing ? [] : actions(turn, article)));
    if (focused) does.querySelector(`[data-action=${focused}]`)?.focus();
  });
  return article;
}

function welcome() {
  const {words, examples} = props.value;
  return make('div', {class: 'welcome'}, make('h2', {}, words.welcome), make('p', {}, words.start),
    make('div', {class: 'examples'}, ...examples.map((one, index) => {
      const shown = make('button', {type: 'button', class: 'example'}, make('img', {src: one.url, alt: ''}), one.text);
      shown.addEventListener('click', () => trigger('example_select', {index}));
      return shown;
    })));
}

// The end stays in sight as an answer grows and pictures arrive, until somebody scrolls away from it.
let opened = null, low = true;
const down = () => { if (low) log.scrollTop = log.scrollHeight; };
log.addEventListener('scroll', () => { low = log.scrollHeight - log.scrollTop - log.clientHeight < 80; });
log.addEventListener('load', down, true);
function render() {
  const {turns, words, busy, id} = props.value;
  if (turns.at(-1)?.role === 'user' || opened !== id) low = true;
  if (opened !== id) { made.clear(); log.replaceChildren(); opened = id; }
  log.setAttribute('aria-label', words.conversation);
  log.setAttribute('aria-busy', !!busy);
  const articles = turns.map(show), kept = new Set(turns.map((turn) => turn.id));
  for (const id of [...made.keys()]) if (!kept.has(id)) made.delete(id);
  if (!turns.length) {
    articles.push(welcome());
  }
  articles.forEach((one, place) => { if (log.children[place] !== one) log.insertBefore(one, log.children[place] || null); });
  while (log.children.length > articles.length) log.lastChild.remove();
  down();
}
watch('value', render);
render();
