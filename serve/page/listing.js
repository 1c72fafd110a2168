const tell = (action, id, more) => trigger('click', {action, id, ...more});
function rename(item) {
  const open = item.querySelector('.open'), box = document.createElement('input');
  box.value = item.querySelector('.title').textContent;
  box.setAttribute('aria-label', element.querySelector('nav').dataset.name || props.value.words.name);
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
