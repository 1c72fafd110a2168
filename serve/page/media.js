// Files for the question box. What it takes is given to it as a drop, the one way in for files from everywhere.
const find = (one) => element.querySelector(one), {taken, endings, most} = props.value;
const camera = find('.camera'), video = find('video'), phone = find('.phone'), note = find('.told');
const language = navigator.languages.map((one) => /^(en|zh)\b/.exec(one)?.[1]).find(Boolean) || 'en';
const words = props.value.words[language];
const OURS = Symbol('checked'), ICON = 'M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7';
let shots = 0;

function tell(...sentences) {
  note.textContent = sentences.join(' ');
  note.hidden = !sentences.length;
}
const fill = (sentence, values) => sentence.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
const megabytes = (bytes) => (Math.ceil(bytes / most.unit * 10) / 10).toString();

// Those that are taken; why others are not is told.
function checked(files) {
  const told = [], good = [];
  for (const file of files) {
    const ending = file.name.toLowerCase().split('.').pop();
    if (!taken.includes(file.type) && !endings.includes(ending)) told.push(fill(words.media_unknown, {name: file.name}));
    else if (file.size > most.file) told.push(fill(words.media_large, {name: file.name, size: megabytes(file.size), most: megabytes(most.file)}));
    else good.push(file);
  }
  const together = good.reduce((sum, file) => sum + file.size, 0);
  if (together > most.together) {
    told.push(fill(words.media_together, {size: megabytes(together), most: megabytes(most.together)}));
    good.length = 0;
  }
  const count = good.length + document.querySelectorAll('#question .thumbnail-item').length;
  if (count > most.pictures) {
    told.push(fill(words.media_many_files, {count, most: most.pictures}));
    good.length = 0;
  }
  tell(...told);
  return good;
}

function transferOf(files) {
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  return transfer;
}

function give(files) {
  const dropped = new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: transferOf(files)});
  dropped[OURS] = true;
  document.querySelector('#question textarea').dispatchEvent(dropped);
}

const stop = (event) => { event.preventDefault(); event.stopImmediatePropagation(); };
const listen = (kind, where, does) => document.addEventListener(kind, (event) => {
  if (element.isConnected && !event[OURS] && event.target.closest?.(where)) does(event);
}, true);

listen('dragover', '#chat-tab', (event) => { if (event.dataTransfer?.types.includes('Files')) event.preventDefault(); });
listen('drop', '#chat-tab', (event) => {
  if (!event.dataTransfer?.files.length) return;
  stop(event);
  give(checked(event.dataTransfer.files));
});
listen('paste', '#question', (event) => {
  const {files, types} = event.clipboardData;
  // Of a table or a page from elsewhere the words are meant, though a picture of them comes along.
  if (!files.length || (types.includes('text/html') && event.clipboardData.getData('text/plain').trim())) return;
  stop(event);
  give(checked(files));
});
listen('change', '#question input[type=file]', (event) => {
  const good = checked(event.target.files);
  if (good.length === event.target.files.length) return;
  if (!good.length) return stop(event);
  event.target.files = transferOf(good).files;
});
listen('input', '#question textarea', () => tell());

// The camera: on phones the one of the system, which turns and focuses and needs no encrypted connection.
function added(file) {
  const good = checked([file]);
  give(good);
  if (good.length) tell(fill(words.media_taken, {names: file.name}));
  document.querySelector('#question textarea').focus();
}
find('.open').addEventListener('click', async () => {
  tell();
  if (matchMedia('(pointer: coarse)').matches || !navigator.mediaDevices?.getUserMedia) return phone.click();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment', width: {ideal: 1920}}});
  } catch {
    return tell(words.media_closed);
  }
  camera.showModal();
  find('.take').focus();
});
find('.take').addEventListener('click', () => {
  if (!video.videoWidth) return;
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext('2d').drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    camera.close();
    added(new File([blob], `camera-${++shots}.jpg`, {type: 'image/jpeg'}));
  }, 'image/jpeg', 0.95);
});
find('.close').addEventListener('click', () => camera.close());
camera.addEventListener('close', () => {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
});
phone.addEventListener('change', () => { if (phone.files.length) added(phone.files[0]); phone.value = ''; });

const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
for (const [name, value] of Object.entries({viewBox: '0 0 24 24', fill: 'none', stroke: 'currentColor', 'stroke-width': 2, 'stroke-linejoin': 'round', 'aria-hidden': 'true'})) svg.setAttribute(name, value);
path.setAttribute('d', ICON);
svg.append(path);
find('.open').append(svg);
for (const one of ['.open', '.camera', 'video']) find(one).setAttribute('aria-label', words.camera);
find('.open').title = words.camera;
find('.take').textContent = words.media_take;
find('.close').textContent = words.close;
