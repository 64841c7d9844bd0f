/** The page: what is shown for the chosen card, and what its buttons do. */
import { ask, askJson, key } from './api.js';
import * as compare from './compare.js';
import { $, all, announce, fill, isJson, label, make, pause, put, save, setSource, stem } from './dom.js';
import { draw as drawGallery } from './gallery.js';
import { addPicture, busy, cancel, cards, finished, newCard, percentOf, recall, remove, resultsOf, setUp, start, watch } from './jobs.js';
import * as mask from './mask.js';
import { recipeIn, settingsOf } from './recipe.js';
import { requestOf } from './request.js';
import * as settings from './settings.js';
import { clientOf, snippetOf } from './snippet.js';
import { number, say, sizeText } from './text.js';

let selected = null, variant = 0, found = null;

// What is shown

function pick(card) {
  [selected, variant] = [card, 0];
  draw();
  $('stage').scrollIntoView({ block: 'nearest' });
}

function draw() {
  if (!cards.includes(selected)) selected = cards[0] ?? null;
  drawGallery(selected, pick);
  const pane = paneOf(selected);
  for (const { id } of all('.pane')) $(id).hidden = id !== pane;
  DRAW[pane]?.(selected);
  const running = cards.find(card => card.state === 'running');
  document.title = running ? `${percentOf(running)} % · enlarger` : 'enlarger';
  drawForm();
}

function paneOf(card) {
  const making = settings.task === 'generate' && settings.possible();
  if (card === null) return making ? 'blank' : 'empty';
  if (busy(card) || (card.state === 'succeeded' && !card.job)) return 'working';
  if (card.state === 'succeeded') return 'viewer';
  if (card.state !== 'ready' || card.size === null) return 'failed';
  if (making) return 'blank';
  return settings.task === 'inpaint' && settings.possible() ? 'painter' : 'viewer';
}

const DRAW = { viewer: drawViewer, painter: mask.open, working: drawWorking, failed: drawFailed };

function drawViewer(card) {
  const results = resultsOf(card), result = results[variant];
  const notes = [...(card.job?.result.enlarger.warnings ?? []), ...(result?.flagged ? [say('flagged')] : [])];
  $('after-bar').hidden = !result;
  $('notes').hidden = notes.length === 0;
  $('notes').replaceChildren(...notes.map(note => make('li', {}, note)));
  if (!result) {
    compare.show(card.url, card.size, card.name);
    return;
  }
  const size = [result.width, result.height];
  compare.show(result.address, size, card.name, card.url);
  const choice = $('variants');
  choice.hidden = results.length < 2;
  if (choice.length !== results.length) choice.replaceChildren(...results.map((_, i) => make('option', {}, number(i + 1))));
  choice.selectedIndex = variant;
  put($('facts'), say('facts', { size: sizeText(size), seed: result.seed }));
  $('again').hidden = !card.file;
  $('download').href = result.address;
}

const nameOf = (card, { width, height, format }) => (
  `${stem(card.name)}-${width}x${height}${variant ? `-${variant + 1}` : ''}.${format.replace('jpeg', 'jpg')}`);

const leftOf = seconds => (seconds > 90 ? say('minutes', { n: Math.round(seconds / 60) }) : say('seconds', { n: seconds }));

function drawWorking(card) {
  const { job, state, message } = card;
  setSource($('preview'), card.preview ?? card.url);
  $('preview').classList.toggle('dim', !card.preview);
  put($('doing'), `${card.name}: ${say(state)}`);
  const { position, steps, stage, eta_seconds: eta } = job ?? {};
  const words = state === 'queued' && position ? say('ahead', { n: position - 1 }) : steps ? say('step', job) : stage;
  put($('doing-more'), card.lost ? say('lost') : message || words || '');
  put($('left'), state === 'running' && eta ? leftOf(Math.ceil(eta)) : '');
  if (state === 'running') $('progress').value = percentOf(card);
  else $('progress').removeAttribute('value');
}

function drawFailed({ name, state, message, file, files, request }) {
  const gone = !file && request?.files.length > 0;
  const why = { ready: 'unseen', expired: 'expiredWhy' }[state];
  put($('failed-title'), `${name}: ${say(state)}`);
  put($('failed-text'), `${why ? say(why) : message} ${gone ? say('gone') : ''}`);
  $('retry').hidden = state === 'ready' || gone;
}

function drawForm() {
  const { task } = settings, { factor } = settings.read();
  put($('go'), say('go', { task: say(task), n: task === 'generate' ? 1 : sendable().length }));
  $('go').disabled = !settings.possible();
  const size = selected && !busy(selected) && factor <= 16 ? selected.size : null;
  put($('factor-help'), size ? say('becomes', { from: sizeText(size), to: sizeText(size.map(side => Math.round(side * factor))) }) : '');
  if (!$('code').open) return;
  put($('client'), clientOf(task));
  const request = requestOf(task, settings.unusedNow(), settings.read());
  put($('snippet'), snippetOf($('language').selectedIndex, request, selected?.name ?? 'photo.png'));
}

// What is done

/** The cards that the button would send. */
function sendable() {
  const ready = cards.filter(card => card.state === 'ready');
  return settings.task === 'inpaint' ? ready.filter(mask.painted) : ready;
}

async function go() {
  put($('trouble'), '');
  if (!settings.check()) return;
  const { task } = settings, values = settings.read();
  const request = requestOf(task, settings.unusedNow(), values);
  if (task === 'generate') {
    const card = newCard({ name: values.prompt.slice(0, 60) || say('generate') });
    start(card, request, {});
    return pick(card);
  }
  if (task !== 'inpaint' && sendable().length === 0 && selected?.file) pick(await addPicture(selected.file));
  const ready = sendable().reverse();
  if (ready.length === 0) return put($('trouble'), say(cards.some(card => card.state === 'ready') ? 'paintFirst' : 'addFirst'));
  for (const card of ready) start(card, request, { image: card.file, mask: task === 'inpaint' ? await mask.exported(card) : null });
  return pick(ready.includes(selected) ? selected : ready[0]);
}

async function retry(card) {
  const files = card.files ?? { image: card.file };
  if (card.request.files.every(name => files[name])) start(card, card.request, files);
  else again(card); // the mask is lost
}

/** A new card of the same picture, to be sent with other settings. */
async function again({ file, strokes = [] }) {
  const next = await addPicture(file);
  next.strokes = [...strokes];
  pick(next);
}

/** The shown result as a file; none if it has expired. */
async function shownFile(use) {
  const card = selected, result = resultsOf(card)[variant];
  const answer = await ask(result.address).catch(() => watch(card));
  if (answer) use(new File([await answer.blob()], nameOf(card, result), { type: answer.headers.get('Content-Type') }));
}

async function addPictures(files) {
  if (files.length === 0) return;
  let last;
  for (const file of files) last = await addPicture(file);
  if (settings.task === 'generate') settings.chooseTask('upscale');
  announce(say('added', { n: files.length }));
  pick(last);
}

/** Take what was dropped, pasted or picked: pictures, and recipes in them or alone. */
async function take(files) {
  const pictures = [];
  for (const file of files) {
    const { name } = file, recipe = await recipeIn(file).catch(() => null);
    const other = isJson(file) || !/^(image\/|$)/.test(file.type);
    if (recipe && other) useRecipe({ recipe, name });
    else if (recipe) offer({ recipe, name });
    else if (other) notice(say('foundNot', { name }));
    if (!other) pictures.push(file);
  }
  await addPictures(pictures);
}

function offer(what) {
  const { task, model, seeds } = what.recipe;
  found = what;
  notice(say('found', { name: what.name, recipe: [task, model, ...(seeds ?? [])].join(', ') }), true);
}

function notice(words, useful = false) {
  put($('found-text'), words);
  $('found-use').hidden = !useful;
  $('found').hidden = false;
  announce(words);
}

function useRecipe({ recipe, name }) {
  notice([say('foundDone', { name }), ...settings.restore(settingsOf(recipe))].join(' '));
}

async function copy() {
  try {
    await navigator.clipboard.writeText($('snippet').textContent);
  } catch { // no clipboard outside secure contexts: the old way
    getSelection().selectAllChildren($('snippet'));
    document.execCommand('copy');
  }
  announce(say('copied'));
  put($('copy'), say('copied'));
  await pause(2000);
  put($('copy'), say('copy'));
}

// Key, colours, service

let asking = null;

/** Ask for the key; true if one was given. Those that need it at the same time share the question. */
function needKey(wrong) {
  asking ??= new Promise(resolve => {
    put($('key-error'), wrong ? say('keyWrong') : '');
    $('ask-key').returnValue = '';
    $('ask-key').onclose = () => {
      asking = null;
      $('use-key').hidden = false;
      resolve($('ask-key').returnValue === 'given');
    };
    $('ask-key').showModal();
  });
  return asking;
}

function giveKey(event) {
  event.preventDefault();
  const value = $('key').value.trim();
  if (!/^[!-~]+$/.test(value)) return put($('key-error'), say('keyOdd'));
  key.set(value);
  $('key').value = '';
  return $('ask-key').close('given');
}

const THEMES = ['auto', 'light', 'dark'];
const theme = () => localStorage.getItem('enlarger.theme') ?? 'auto';

function setTheme(name) {
  localStorage.setItem('enlarger.theme', name);
  document.documentElement.dataset.theme = name;
  label($('theme'), say(name));
}

/** Learn the models: until the service is reached, knows the key and has looked at its models. */
async function connect(wrong = false) {
  try {
    const { data } = await askJson('v1/models');
    settings.setModels(data);
    put($('trouble'), '');
    if (data.every(({ enlarger }) => !enlarger.kind && !enlarger.error)) throw new Error('');
  } catch (problem) {
    put($('trouble'), problem.message);
    const refused = problem.status === 401;
    if (refused ? await needKey(wrong) : await pause(2000).then(() => true)) connect(refused);
  }
}

/** A job is over: its model is loaded now, or something was wrong with a field. */
function ended(card, problem) {
  if (!problem) connect();
  else if (card === selected) settings.complain(problem.param, problem.message);
}

// What is listened to

const CLICKS = {
  choose: () => $('file').click(), add: () => $('file').click(), cancel: () => cancel(selected), retry: () => retry(selected),
  remove: () => remove(selected), again: () => again(selected), onward: () => shownFile(file => addPictures([file])),
  clear: () => cards.filter(finished).forEach(remove), copy, 'found-use': () => useRecipe(found),
  'found-close': () => { $('found').hidden = true; },
  download: event => { event.preventDefault(); shownFile(save); },
  recipe: () => save(new File([JSON.stringify(selected.job.result.enlarger.recipe, null, 2)], `${stem(selected.name)}.recipe.json`)),
  theme: () => setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % 3]),
  'use-key': async () => { if (await needKey(false)) connect(true); }, 'key-close': () => $('ask-key').close(''),
};

function listen() {
  for (const [id, act] of Object.entries(CLICKS)) $(id).onclick = act;
  document.forms[0].onsubmit = event => { event.preventDefault(); go(); };
  document.forms[1].onsubmit = giveKey;
  $('file').onchange = () => { take([...$('file').files]); $('file').value = ''; };
  $('code').ontoggle = drawForm;
  $('after').onerror = () => selected.id && watch(selected);
  $('variants').onchange = () => { variant = $('variants').selectedIndex; draw(); };
  document.onkeydown = event => {
    if (event.key === 'Escape' && !$('ask-key').open && selected && busy(selected)) cancel(selected);
  };
  document.onpaste = ({ clipboardData }) => take([...clipboardData.files]);
  const dragging = on => event => {
    if (!event.dataTransfer.types.includes('Files')) return;
    event.preventDefault();
    $('dropping').hidden = !on;
  };
  document.ondragover = dragging(true);
  document.ondragleave = event => event.relatedTarget || dragging(false)(event);
  document.ondrop = event => { dragging(false)(event); take([...event.dataTransfer.files]); };
}

fill();
setTheme(theme());
setUp(draw, needKey, ended);
settings.setUp(draw);
compare.setUp();
mask.setUp(drawForm);
listen();
connect();
recall().then(draw);
