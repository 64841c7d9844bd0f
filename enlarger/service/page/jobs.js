/** The cards: pictures to be sent, and this browser's jobs. */
import { address, ask, askJson, key, over, stream } from './api.js';
import { announce, make, pause } from './dom.js';
import { forget, keepPicture, openTabs, pictureOf, remember, remembered, tab, unique, watchTabs } from './keep.js';
import { bodyOf } from './request.js';
import { say } from './text.js';
import { tiffOf, turnOf } from './tiff.js';

const TIFF = /tiff/, WEBP = /webp/;
const UNSENT = ['lined', 'sending', 'waiting'];

export const cards = [];
export const fresh = card => ['adding', 'ready'].includes(card.state);
export const busy = card => [...UNSENT, 'queued', 'running'].includes(card.state);
export const finished = card => !busy(card) && !fresh(card);
/** Done, but its result is not here. */
export const unknown = card => card.state === 'succeeded' && !card.job?.result;
export const percentOf = card => Math.round(100 * (card.job?.progress ?? 0));
/** Closing this tab would lose it. */
export const unsent = card => UNSENT.includes(card.state) && card.tab === tab;

// What `setUp` is given.
let told = () => {}, needKey = async () => false, ended = () => {}, refusal = () => '';
export let lost = false;

/** `changed()` after each change; `ask(wrong)`: is there a key? `end(card, problem)` of a job; `refuse(card)`: why not to send it. */
export function setUp(changed, ask, end, refuse) {
	[told, needKey, ended, refusal] = [changed, ask, end, refuse];
	watchTabs(adopt, gone => drop(cards.find(card => card.key === gone)));
	window.addEventListener('pagehide', () => {
		for (const card of cards.filter(unsent)) remember(card, { state: 'ready' });
	});
}

function put(card, changes) {
	if (!cards.includes(card)) return;
	const { state } = card;
	Object.assign(card, changes);
	if (card.state !== state) {
		if (!fresh(card) && card.state !== 'lined') announce(`${card.name}: ${say(card.state)}. ${card.message}`);
		remember(card);
	}
	redraw();
}

function redraw() {
	if (!cards.some(busy)) quiet.abort();
	told();
}

/** A card; the newest `at[0]` comes first. */
export function newCard(fields) {
	const card = { key: unique(), at: [Date.now(), 0], state: 'ready', id: null, size: null, thumb: null, message: '', ...fields };
	cards.push(card);
	cards.sort((a, b) => b.at[0] - a.at[0] || a.at[1] - b.at[1]);
	return card;
}

// Pictures are looked at one after the other: 200 decoded at once would not fit in memory.
let looking = Promise.resolve();

export function addPicture(file, at = [Date.now(), 0]) {
	const card = newCard({ name: file.name || 'picture.png', file, url: URL.createObjectURL(file), at, state: 'adding' });
	card.looked = looking = looking.then(async () => {
		const seen = await looked(file);
		await keepPicture(card);
		put(card, { ...seen, state: card.state === 'adding' ? 'ready' : card.state });
	});
	return card;
}

/** Size and small copy, and a PNG of what browsers show wrongly or not. */
async function looked(blob) {
	try {
		let turn = WEBP.test(blob.type) ? await turnOf(blob) : 1;
		const image = await createImageBitmap(blob, turn > 1 ? { imageOrientation: 'none' } : {}).catch(async () => {
			const [tiff, turned] = await tiffOf(blob);
			turn = turned;
			return createImageBitmap(tiff);
		});
		const size = turn > 4 ? [image.height, image.width] : [image.width, image.height];
		const small = Math.min(1, 160 / Math.max(...size)), [width, height] = size.map(side => Math.ceil(side * small));
		const seen = { size, thumb: drawn(make('canvas', { width, height }), image, turn).toDataURL('image/webp', 0.7) };
		if (turn > 1 || TIFF.test(blob.type)) {
			seen.url = URL.createObjectURL(await drawn(new OffscreenCanvas(...size), image, turn).convertToBlob());
		}
		image.close();
		return seen;
	} catch {
		return {};
	}
}

/** A canvas filled with a picture, turned as EXIF says. */
function drawn(canvas, image, turn) {
	const pen = canvas.getContext('2d'), { width, height } = canvas;
	if ([2, 3, 6, 7].includes(turn)) pen.transform(-1, 0, 0, 1, width, 0);
	if ([3, 4, 7, 8].includes(turn)) pen.transform(1, 0, 0, -1, 0, height);
	if (turn > 4) pen.transform(0, 1, 1, 0, 0, 0);
	pen.drawImage(image, 0, 0, ...(turn > 4 ? [height, width] : [width, height]));
	return canvas;
}

// Sending: one after the other

const line = [];
let sending = false, freed = () => {};

/** Send a card's request; those of one `batch` were started together. */
export function start(card, request, files, batch) {
	// The same request again has the same key: if the answer to the first was lost, its job is found and no second one made.
	const once = (JSON.stringify(card.request) === JSON.stringify(request) && card.once) || unique();
	const sent = { tab, batch, request, files, task: request.task, job: null, id: null, message: '', once };
	line.push(card);
	put(card, { state: 'lined', controller: new AbortController(), ...sent });
	sendLine();
}

/** Send what stands in line. One that must wait holds back the rest, so that uploads never take all of a browser's connections. */
async function sendLine() {
	if (sending) return;
	sending = true;
	listen();
	for (let card; (card = line.shift()); ) if (card.state === 'lined') await send(card, card.controller.signal);
	sending = false;
}

async function send(card, signal) {
	try {
		await card.looked;
		const why = refusal(card);
		if (why) throw new Error(why);
		if (signal.aborted) return;
		put(card, { state: 'sending' });
		const { body, headers } = bodyOf(card.request, card.files);
		const options = { method: 'POST', body, signal, headers: { ...headers, Prefer: 'respond-async', 'Idempotency-Key': card.once } };
		const job = await (await persist(card, options, signal)).json();
		if (signal.aborted) return;
		put(card, { id: job.id, state: job.status, job, once: null });
		await refresh(card).catch(() => {});
	} catch (problem) {
		fail(card, problem, signal);
	}
}

/** Ask until there is an answer: with another key, or later, as the service says. */
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

/** Wait as long as the service says, or until one of our jobs makes room. */
async function waitFor(card, { wait, message }, signal) {
	const free = new Promise(resolve => { freed = () => resolve(true); });
	for (let left = Math.ceil(wait); left > 0; left--) {
		const ours = cards.some(({ state }) => state === 'queued' || state === 'running');
		put(card, { state: 'waiting', message: ours ? say('turn') : `${message} ${say('retryIn', { n: left })}` });
		if (await Promise.race([pause(1000, signal), free])) break;
	}
	put(card, { state: 'sending', message: '' });
}

const named = ({ name }, problem) => problem?.message.replace(/^image\b/, name) ?? '';

function fail(card, problem, signal) {
	if (signal?.aborted || !cards.includes(card)) return;
	if (problem.status) card.once = null; // else the job may be there
	put(card, { state: problem.status === 404 && card.id ? 'expired' : 'failed', message: named(card, problem) });
	ended(card, problem);
}

// Following: one stream for all tabs; without streams each job is asked for

let listening = false, quiet = new AbortController();
const name = () => `enlarger.stream.${key.get()}`;

/** The tab that holds the lock has the one stream, and tells the others; when it closes, the next takes over. */
async function listen() {
	if (listening) return;
	listening = true;
	quiet = new AbortController();
	const others = new BroadcastChannel(name());
	others.onmessage = ({ data: [data, kind] }) => hear(data, kind);
	const tell = (data, kind) => {
		hear(data, kind);
		others.postMessage([data, kind]);
	};
	await sync().catch(() => {});
	const alone = () => followAll(tell, quiet.signal);
	await (navigator.locks?.request(name(), { signal: quiet.signal }, alone).catch(() => {}) ?? alone());
	others.close();
	listening = false;
	if (cards.some(busy)) listen();
}

/** Follow until all is done. Where three streams in a row do not come through, jobs are asked for each second. */
async function followAll(tell, signal) {
	for (let failures = 0; !signal.aborted; failures++) {
		try {
			if (failures < 3 && await stream(() => sync().catch(() => {}), tell, signal)) failures = 0;
			else await sync();
		} catch (problem) {
			if (signal.aborted) return;
			if (!(problem.status === 401 && await needKey(false))) lose(true);
		}
		if (!signal.aborted) await pause(1000);
	}
}

function lose(now) {
	if (lost === now) return;
	lost = now;
	told();
}

export async function catchUp(which = unknown) {
	for (const card of cards.filter(card => card.id && which(card))) await refresh(card);
}

// What happened while there was no stream.
const sync = () => catchUp(card => busy(card) || unknown(card));

/** Ask how a card's job is, or find that it has expired. */
export async function refresh(card) {
	try {
		hear(await askJson(`v1/jobs/${card.id}`));
	} catch (problem) {
		if (problem.status === 401 || problem.wait || !(problem.status < 500 && problem.status)) throw problem;
		fail(card, problem);
	}
}

function hear(data, kind) {
	lose(false);
	const card = cards.find(({ id }) => id === data.id);
	if (over(data) || (data.status === 'running' && card?.job?.status === 'queued')) freed();
	if (!card || card.state === 'canceled' || (card.job && over(card.job) && !over(data))) return;
	card.job = { ...card.job, ...data };
	if (over(card.job)) {
		told(); // the bar is full
		complete(card);
		return;
	}
	const now = Math.floor(percentOf(card) / 25);
	if (now > (card.quarter ?? 0)) announce(`${card.name}: ${25 * now} %`);
	card.quarter = now;
	if (card.job.preview_url && (kind === 'preview' || !card.preview)) showPreview(card);
	put(card, { state: card.job.status });
}

/** A job is over: once, whoever says it first, stream or answer. */
async function complete(card) {
	const { id, status, error } = card.job;
	if (card.completed === id) return;
	card.completed = id;
	const news = card.state !== status;
	if (news && status === 'succeeded' && !(card.task === 'upscale' && card.thumb)) {
		const picture = await ask(contentOf(card, 0)).then(answer => answer.blob()).catch(() => null);
		if (picture) Object.assign(card, await looked(picture), { size: card.size });
	}
	URL.revokeObjectURL(card.preview);
	put(card, { state: status, message: named(card, error), preview: null, quarter: 0 });
	if (news) ended(card, error);
}

async function showPreview(card) {
	if (card.fetching) return;
	card.fetching = true;
	const answer = await ask(`v1/jobs/${card.id}/preview`).catch(() => null);
	const blob = await answer?.blob().catch(() => null);
	if (blob && card.state === 'running') {
		URL.revokeObjectURL(card.preview);
		put(card, { preview: URL.createObjectURL(blob) });
	}
	card.fetching = false;
}

/** Stop a job, or sending it. False: it goes on. */
export async function cancel(card) {
	const { id, once, state } = card;
	card.controller?.abort();
	put(card, { state: 'canceled', message: '', preview: null, controller: null, once: null });
	const path = id ? `${id}/cancel` : once && state !== 'lined' && `cancel?idempotency_key=${once}`;
	try {
		const job = path && await askJson(`v1/jobs/${path}`, { method: 'POST' });
		if (id && job.status !== 'canceled') { // it was over before
			card.state = state;
			hear(job);
		}
	} catch (problem) {
		if (problem.status === 404) return true;
		put(card, { state: id ? state : 'failed', message: problem.message, once });
		listen();
		return false;
	}
	return true;
}

export async function remove(card) {
	if (busy(card) && !await cancel(card)) return;
	forget(card);
	drop(card);
}

function drop(card) {
	if (!card) return;
	cards.splice(cards.indexOf(card), 1);
	URL.revokeObjectURL(card.url);
	redraw();
}

/** The cards of earlier visits. What a closed tab had not sent is ready to be sent again. */
export async function recall() {
	const open = await openTabs();
	for (const plain of remembered()) {
		if (!plain.id && busy(plain) && !open.includes(plain.tab)) plain.state = 'ready';
		await adopt(plain);
	}
}

/** Take over a card of an earlier visit or another tab, unless that is behind. */
async function adopt(plain) {
	let card = cards.find(({ key }) => key === plain.key);
	if (card) {
		if (card.id && card.id === plain.id && finished(card) && busy(plain)) return;
		if (plain.state === 'canceled') card.controller?.abort();
		Object.assign(card, plain);
	} else card = newCard(plain);
	if (!card.file) {
		const file = await pictureOf(card);
		if (file && !card.file) Object.assign(card, { file, url: URL.createObjectURL(file) }, (TIFF.test(file.type) || WEBP.test(file.type)) && await looked(file));
	}
	if (!card.id && !card.file && fresh(card)) return drop(card);
	redraw();
	if (busy(card)) listen();
	else if (unknown(card)) refresh(card).catch(() => {});
}

const contentOf = (card, variant) => address(`v1/images/${card.id}/content?variant=${variant}`);

export const resultsOf = card => (card.job?.result?.data ?? []).map((item, i) => ({ ...item, address: contentOf(card, i) }));
