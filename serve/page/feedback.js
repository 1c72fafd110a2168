// Built here from `props.value` and never by a template, as in listing.js.
const section = element.querySelector('section');

function make(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

const pictures = (shown) => make('div', {class: 'pictures'},
  ...shown.map((one) => make('img', {src: one.url, alt: one.name, loading: 'lazy'})));
// A long text scrolls, so the keyboard must reach it.
const cell = (name, text) => make('div', {}, make('dt', {}, name), make('dd', text.length > 300 ? {tabindex: 0} : {}, text));

function item(kind, one, cells, ...about) {
  const {words} = props.value, when = new Date(one.when * 1000);
  return make('li', {}, ...(one.pictures.length ? [pictures(one.pictures)] : []), make('dl', {}, ...cells),
    make('div', {class: 'about'}, ...about,
      make('time', {datetime: when.toISOString()}, when.toLocaleString(document.documentElement.lang || undefined)),
      make('button', {type: 'button', 'data-kind': kind, 'data-turn': one.turn,
        'aria-label': `${words.remove}: ${one.question}`}, words.remove)));
}

function answer(one) {
  const {words} = props.value, cells = [cell(words.question, one.question), cell(words.answer, one.answer)];
  if (one.correction) cells.push(cell(words.correction, one.correction));
  const said = {1: ['\u{1F44D}', words.up], [-1]: ['\u{1F44E}', words.down]}[one.rating];
  return item('answer', one, cells, ...(said ? [make('span', {role: 'img', 'aria-label': said[1], title: said[1]}, said[0])] : []));
}

function vote(one) {
  const {words} = props.value, none = !one.answers.some((answer) => answer.chosen);
  return item('vote', one, [cell(words.question, one.question),
    ...one.answers.map((answer) => cell(answer.chosen ? `${answer.model} \u2713 ${words.better}` : answer.model, answer.text))],
    ...(none ? [make('span', {}, words.same)] : []));
}

function tally(rows) {
  const {words} = props.value, names = [words.model, words.other, words.better, words.worse, words.same];
  return make('div', {class: 'wide', tabindex: 0, role: 'region', 'aria-label': words.votes}, make('table', {},
    make('thead', {}, make('tr', {}, ...names.map((name) => make('th', {scope: 'col'}, name)))),
    make('tbody', {}, ...rows.map((row) => make('tr', {}, ...row.map((cell) => make('td', {}, String(cell))))))));
}

let built = '';
function render() {
  const {words, counts, command, answers, votes} = props.value, key = JSON.stringify(props.value);
  if (key === built) return;
  built = key;
  const parts = [make('p', {class: 'counts'}, answers.length + votes.length ? counts : words.none)];
  if (answers.length) parts.push(make('h2', {}, words.answers), make('ul', {class: 'answers'}, ...answers.map(answer)));
  if (votes.length) parts.push(make('h2', {}, words.votes), tally(props.value.tally), make('ul', {class: 'votes'}, ...votes.map(vote)));
  parts.push(make('p', {class: 'command'}, `${words.command} `, make('code', {}, command)));
  section.replaceChildren(...parts);
}

element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-kind]');
  if (!button) return;
  button.disabled = true;
  trigger('delete', {kind: button.dataset.kind, turn: Number(button.dataset.turn)});
});

watch('value', render);
render();
