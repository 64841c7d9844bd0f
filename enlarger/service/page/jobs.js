/** The cards: pictures that wait to be sent, and jobs of this browser with what became of them. */
import { address, ask, follow, over } from './api.js';
import { announce, make, pause } from './dom.js';
import { dropPicture, keepPicture, pictureOf, remember, remembered } from './keep.js';
import { bodyOf } from './request.js';
import { say } from './text.js';

export const cards = [];
export const busy = card => ['sending', 'waiting', 'queued', 'running'].includes(card.state);
export const finished = card => !busy(card) && card.state !== 'ready';
export const percentOf = card => Math.round(100 * (card.job?.progress ?? 0));

let told = () => {}, needKey = async () => false, ended = () => {};
let chain = Promise.resolve(); // requests go one after the other: one that must wait holds back the rest

/** `changed()` after each change; `ask(wrong)` asks for a key and says whether there is one now; `end(card, problem)`
 * hears of the end of a job, with what was wrong or without. */
export function setUp(changed, ask, end) {
  [told, needKey, ended] = [changed, ask, end];
}

function put(card, changes) {
  const { state } = card;
  Object.assign(card, changes);
  if (card.state !== state) {
    if (card.state !== 'ready') announce(`${card.name}: ${say(card.state)}. ${card.message}`);
    remember(cards);
  }
  told();
}

const unique = () => crypto.getRandomValues(new Uint32Array(4)).join('-');

/** A card at the front of the row. */
export function newCard(fields) {
  const card = { key: unique(), state: 'ready', id: null, size: null, thumb: null, message: '', ...fields };
  cards.unshift(card);
  return card;
}

/** Add a picture, seen and measured if this browser can show it. */
export async function addPicture(file) {
  const card = newCard({ name: file.name || 'picture.png', file, url: URL.createObjectURL(file) });
  Object.assign(card, await looked(file));
  keepPicture(card);
  remember(cards);
  return card;
}

/** Size and small copy of a picture; nothing if it cannot be shown. */
async function looked(blob) {
  try {
    const image = await createImageBitmap(blob);
    const size = [image.width, image.height];
    const small = Math.min(1, 160 / Math.max(...size));
    const canvas = make('canvas', { width: Math.ceil(size[0] * small), height: Math.ceil(size[1] * small) });
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
    return { size, thumb: canvas.toDataURL('image/webp', 0.7) };
  } catch {
    return {};
  }
}

/** Send a card's request, after those before it. */
export function start(card, request, files) {
  const controller = new AbortController();
  put(card, { state: 'sending', request, files, task: request.task, controller, job: null, id: null, message: '' });
  chain = chain.then(() => controller.signal.aborted || send(card, controller.signal));
}

async function send(card, signal) {
  const { body, headers } = bodyOf(card.request, card.files);
  const options = { method: 'POST', body, signal, headers: { ...headers, Prefer: 'respond-async', 'Idempotency-Key': unique() } };
  try {
    const job = await (await persist(card, options, signal)).json();
    put(card, { id: job.id, state: job.status, job });
    watch(card);
  } catch (problem) {
    fail(card, problem, signal);
  }
}

/** Ask until there is an answer: a busy service again when it says so, and for a key if it needs one. */
async function persist(card, options, signal) {
  for (let wrong = false; ; ) {
    try {
      return await ask(card.request.path, options);
    } catch (problem) {
      if (problem.status === 401 && await needKey(wrong)) wrong = true;
      else if (problem.wait) await waitFor(card, problem, signal);
      else throw problem;
    }
  }
}

async function waitFor(card, { wait, message }, signal) {
  for (let left = Math.ceil(wait); left > 0; left--) {
    put(card, { state: 'waiting', message: `${message} ${say('retryIn', { n: left })}` });
    await pause(1000, signal);
  }
  put(card, { state: 'sending', message: '' });
}

function fail(card, problem, signal) {
  if (signal.aborted) return;
  put(card, { state: problem.status === 404 && card.id ? 'expired' : 'failed', message: problem.message });
  ended(card, problem);
}

/** Follow a job until it is over, or find that it has expired. */
export async function watch(card) {
  card.controller ??= new AbortController();
  const { signal } = card.controller;
  let quarter = 0;
  const changed = (data, kind) => {
    card.job = { ...card.job, ...data };
    if (over(card.job)) return told(); // the bar is full while the result is fetched
    const now = Math.floor(percentOf(card) / 25);
    if (now > quarter) announce(`${card.name}: ${25 * now} %`);
    quarter = now;
    if (card.job.preview_url && (kind === 'preview' || !card.preview)) showPreview(card, signal);
    return put(card, { state: card.job.status });
  };
  try {
    await follow(card.id, changed, lost => { if (lost !== Boolean(card.lost)) put(card, { lost }); }, signal);
    await complete(card);
  } catch (problem) {
    if (problem.status === 401 && await needKey(false)) watch(card);
    else fail(card, problem, signal);
  }
}

async function complete(card) {
  const { status, error } = card.job;
  if (status === 'succeeded' && card.state !== status && !(card.task === 'upscale' && card.thumb)) {
    const picture = await (await ask(contentOf(card, 0))).blob();
    Object.assign(card, await looked(picture), { size: card.size });
  }
  put(card, { state: status, message: error?.message ?? '', preview: null });
  ended(card, error);
}

async function showPreview(card, signal) {
  if (card.fetching) return;
  card.fetching = true;
  const answer = await ask(`v1/jobs/${card.id}/preview`, { signal }).catch(() => null); // one that does not come is no loss
  if (answer) {
    const blob = await answer.blob();
    if (card.preview) URL.revokeObjectURL(card.preview);
    put(card, { preview: URL.createObjectURL(blob) });
  }
  card.fetching = false;
}

/** Stop a job, or sending it. */
export async function cancel(card) {
  card.controller?.abort();
  put(card, { state: 'canceled', message: '', preview: null, controller: null });
  if (card.id) await ask(`v1/jobs/${card.id}/cancel`, { method: 'POST' }).catch(() => {});
}

/** Forget a card. */
export function remove(card) {
  if (busy(card)) cancel(card);
  cards.splice(cards.indexOf(card), 1);
  remember(cards);
  dropPicture(card);
  if (card.url) URL.revokeObjectURL(card.url);
  told();
}

/** The cards of earlier visits, and what became of their jobs. */
export async function recall() {
  for (const card of remembered()) {
    const file = await pictureOf(card);
    if (file) Object.assign(card, { file, url: URL.createObjectURL(file) });
    if (!card.id && !finished(card)) card.state = 'ready';
    if (card.id || file) cards.push(card);
  }
  told();
  for (const card of cards) if (card.id && (busy(card) || card.state === 'succeeded')) watch(card);
}

const contentOf = (card, variant) => address(`v1/images/${card.id}/content?variant=${variant}`);

/** What a job made, and where it is. */
export const resultsOf = card => (card.job?.result?.data ?? []).map((item, i) => ({ ...item, address: contentOf(card, i) }));
