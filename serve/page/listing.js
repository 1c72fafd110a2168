// Built here from `props.value` and never by a template: Gradio runs what templates make of words.
const list = element.querySelector('ul'), nothing = element.querySelector('p');
const tell = (action, id, more) => trigger('click', {action, id, ...more});

function make(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

function item(one) {
  const {words} = props.value;
  const does = (action, words) => make('button', {type: 'button', 'data-action': action, class: action}, words);
  const saved = (kind, words) => make('a', {href: `conversations/${one.id}.${kind}`, download: ''}, words);
  return make('li', {'data-id': one.id, class: one.current && 'current'},
    make('button', {type: 'button', class: 'open', 'data-action': 'open', 'aria-current': one.current && 'page'},
      ...(one.pinned ? [make('span', {class: 'pin', 'aria-hidden': 'true'}, '\u{1F4CC}')] : []),
      make('span', {class: 'title'}, one.title)),
    make('details', {}, make('summary', {'aria-label': `${words.more} ${one.title}`}, '\u22EF'),
      make('div', {class: 'menu'}, does('pin', one.pinned ? words.unpin : words.pin), does('rename', words.rename),
        saved('zip', words.as_markdown), saved('json', words.as_json), does('delete', words.delete))));
}

let built = '';
function render() {
  const {conversations, words} = props.value, key = JSON.stringify(props.value);
  if (key === built) return;
  built = key;
  element.querySelector('nav').setAttribute('aria-label', words.list);
  list.replaceChildren(...conversations.map(item));
  nothing.textContent = conversations.length ? '' : words.empty;
}

function rename(item) {
  const open = item.querySelector('.open'), box = document.createElement('input');
  box.value = item.querySelector('.title').textContent;
  box.setAttribute('aria-label', props.value.words.name);
  open.replaceWith(box);
  box.focus(); box.select();
  let done = false;
  const end = (taken) => {
    if (done) return;
    done = true;
    const words = box.value.trim();
    box.replaceWith(open);
    if (taken && words) { item.querySelector('.title').textContent = words; tell('rename', item.dataset.id, {title: words}); }
  };
  box.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') end(true);
    if (event.key === 'Escape') end(false);
  });
  box.addEventListener('blur', () => end(true));
}
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  const item = event.target.closest('li');
  for (const menu of element.querySelectorAll('details[open]')) {
    if (!menu.contains(event.target) || event.target.closest('.menu')) menu.removeAttribute('open');
  }
  if (!button || !item) return;
  if (button.dataset.action === 'rename') rename(item);
  else tell(button.dataset.action, item.dataset.id);
});
element.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  const menu = event.target.closest('details[open]');
  if (menu) { menu.removeAttribute('open'); menu.querySelector('summary').focus(); }
});

watch('value', render);
render();
// On a phone the list lies over the conversation that was chosen.
document.addEventListener('click', (event) => {
  if (!element.isConnected || !matchMedia('(max-width: 768px)').matches) return;
  if (event.target.closest('#new, #conversations [data-action=open]')) document.querySelector('#sidebar.open .toggle-button')?.click();
});
