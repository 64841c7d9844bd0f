/** The page: what is shown for a card, and what the buttons do. */
import { ask, askJson, key } from './api.js';
import * as compare from './compare.js';
import { $, all, announce, fill, isPicture, label, make, pause, put, save, setSource, stem } from './dom.js';
import { draw as drawGallery } from './gallery.js';
import { addPicture, busy, cancel, cards, catchUp, finished, fresh, lost, newCard, percentOf, recall, refresh, remove, resultsOf, setUp, start, unknown, unsent } from './jobs.js';
import * as mask from './mask.js';
import { recipeIn, settingsOf } from './recipe.js';
import { requestOf, sizeOf } from './request.js';
import * as settings from './settings.js';
import { clientOf, snippetOf } from './snippet.js';
import { lasting, number, say, sizeText, stageText } from './text.js';
import { zipOf } from './zip.js';

let selected = null, variant = 0, found = null, following = false, minutes = 0;

// What is shown

function pick(card) {
	[selected, variant, following] = [card, 0, busy(card)];
	$('found').hidden = true;
	draw();
	$('stage').scrollIntoView({ block: 'nearest' });
}

function draw() {
	if (!cards.includes(selected)) selected = cards[0] ?? null;
	if (following && selected?.state !== 'running') follow();
	const request = requestNow();
	for (const card of cards) card.unfit = fresh(card) && settings.refusal(card, request);
	drawGallery(selected, pick);
	const pane = paneOf(selected);
	for (const { id } of all('.pane')) $(id).hidden = id !== pane;
	DRAW[pane]?.(selected);
	const running = cards.find(card => card.state === 'running');
	document.title = running ? `${percentOf(running)} % · enlarger` : 'enlarger';
	drawForm();
}

/** Go on to the picture that is worked on, of those that were started together. */
function follow() {
	const next = cards.find(({ state, batch }) => state === 'running' && batch === selected?.batch);
	if (next) [selected, variant] = [next, 0];
}

const requestNow = () => requestOf(settings.task, settings.unusedNow(), settings.read());

/** Which of the panes a card is shown in, by its state and the task. */
function paneOf(card) {
	const making = settings.task === 'generate' && settings.possible();
	if (card === null) return making ? 'blank' : 'empty';
	if (busy(card) || card.state === 'adding' || unknown(card)) return 'working';
	if (card.state === 'succeeded') return 'viewer';
	if (card.state !== 'ready' || card.size === null) return 'failed';
	if (making) return 'blank';
	return settings.task === 'inpaint' && settings.possible() ? 'painter' : 'viewer';
}

const DRAW = { viewer: drawViewer, painter: mask.open, working: drawWorking, failed: drawFailed };

function drawViewer(card) {
	const results = resultsOf(card), result = results[variant];
	const notes = [...(card.job?.result.enlarger.warnings ?? []), ...(result?.flagged ? [say('flagged')] : []), card.unfit].filter(Boolean);
	$('after-bar').hidden = !result;
	$('notes').hidden = notes.length === 0;
	$('notes').replaceChildren(...notes.map(note => make('li', {}, note)));
	if (!result) {
		put($('facts'), '');
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

const nameOf = (card, { width, height, format }, which = 0) => (
	`${stem(card.name)}-${width}x${height}${which ? `-${which + 1}` : ''}.${format.replace('jpeg', 'jpg')}`);

function drawWorking(card) {
	const { job, state, message } = card;
	setSource($('preview'), card.preview ?? card.url);
	$('preview').classList.toggle('dim', !card.preview);
	put($('doing'), `${card.name}: ${say(state)}`);
	const { position, steps, stage, eta_seconds: eta } = job ?? {};
	const doing = stageText(stage);
	const words = state === 'queued' && position ? say('ahead', { n: position - 1 }) : steps ? say('step', { ...job, stage: doing }) : stage && doing;
	put($('doing-more'), lost ? say('lost') : message || words || '');
	put($('left'), state === 'running' && eta ? say('left', { time: lasting(eta) }) : '');
	$('cancel').hidden = !busy(card);
	$('progress').value = percentOf(card);
}

function drawFailed({ name, state, message, file, files, request }) {
	const gone = !file && request?.files.length > 0;
	const why = { ready: 'unseen', expired: 'expiredWhy' }[state];
	put($('failed-title'), `${name}: ${say(state)}`);
	put($('failed-text'), `${why ? say(why, { n: number(minutes) }) : message} ${gone ? say('gone') : ''}`);
	$('retry').hidden = state === 'ready' || gone;
}

function drawForm() {
	const { task } = settings, request = requestNow();
	put($('go'), say('go', { task: say(task), n: task === 'generate' ? 1 : sendable().length }));
	$('go').disabled = !settings.possible() || (task !== 'generate' && !cards.some(fresh) && !selected?.file);
	const size = selected && !busy(selected) && !settings.refusal(selected, request) && selected.size;
	put($('becomes'), size ? say('becomes', { from: sizeText(size), to: sizeText(sizeOf(request, size)) }) : '');
	if (!$('code').open) return;
	put($('client'), clientOf(task));
	put($('snippet'), snippetOf($('language').selectedIndex, request, selected?.name ?? 'photo.png'));
}

// What is done

/** The cards that the button would send. */
function sendable() {
	const ready = cards.filter(card => fresh(card) && !card.unfit);
	return settings.task === 'inpaint' ? ready.filter(mask.painted) : ready;
}

async function go() {
	put($('trouble'), '');
	$('found').hidden = true;
	if (!settings.check()) return;
	const { task } = settings, request = requestNow(), batch = Date.now();
	if (task === 'generate') {
		const card = newCard({ name: settings.read().prompt.slice(0, 60) || say('generate') });
		start(card, request, {}, batch);
		return pick(card);
	}
	if (task !== 'inpaint' && !cards.some(fresh) && selected?.file) pick(addPicture(selected.file));
	const ready = sendable();
	if (ready.length === 0) return put($('trouble'), selected?.unfit || say(cards.some(fresh) ? 'paintFirst' : 'addFirst'));
	for (const card of ready) start(card, request, { image: card.file, mask: task === 'inpaint' ? await mask.exported(card) : null }, batch);
	return pick(ready.includes(selected) ? selected : ready[0]);
}

async function retry(card) {
	const files = card.files ?? { image: card.file };
	if (card.request.files.every(name => files[name])) start(card, card.request, files, Date.now());
	else again(card); // the mask is lost
}

/** The same picture once more, for other settings. */
function again({ file, strokes = [] }) {
	const next = addPicture(file);
	next.strokes = [...strokes];
	pick(next);
}

/** Hand the shown result on as a file; one that has expired is said to be so on its card. */
async function shownFile(use) {
	const file = await fileOf(selected, resultsOf(selected)[variant], variant);
	if (file) use(file);
}

async function fileOf(card, result, which) {
	const answer = await ask(result.address).catch(() => refresh(card).catch(() => {}));
	return answer && new File([await answer.blob()], nameOf(card, result, which), { type: answer.headers.get('Content-Type') });
}

/** All results in archives of less than 4 GiB. */
async function saveAll() {
	const button = $('save-all'), names = new Set(), done = cards.filter(({ state }) => state === 'succeeded');
	button.disabled = true;
	let files = [], size = 0;
	const pack = async () => { if (files.length) save(await zipOf(files.splice(0), 'enlarged.zip')); };
	for (const [i, card] of done.entries()) {
		put(button, say('packing', { n: i + 1, total: done.length }));
		for (const [which, result] of resultsOf(card).entries()) {
			const file = await fileOf(card, result, which);
			if (!file) continue;
			let { name } = file;
			for (let n = 2; names.has(name); n++) name = file.name.replace(/(?=\.\w+$)/, ` (${n})`);
			names.add(name);
			if (size + file.size > 4e9) [size] = [0, await pack()];
			size += file.size + 500;
			files.push(new File([file], name));
		}
	}
	await pack();
	put(button, say('save-all'));
	button.disabled = false;
}

function addPictures(files) {
	if (files.length === 0) return;
	const now = Date.now(), added = files.map((file, i) => addPicture(file, [now, i]));
	if (settings.task === 'generate') settings.chooseTask('upscale');
	announce(say('added', { n: files.length }));
	[selected, variant, following] = [added[0], 0, false];
	draw();
	for (const card of added) card.looked.then(() => { if (card.unfit && $('found').hidden) notice(card.unfit); });
}

/** Take pictures, and recipes in them or alone. */
async function take(files) {
	$('found').hidden = true;
	addPictures(files.filter(isPicture));
	for (const file of files) {
		const { name } = file, recipe = await recipeIn(file).catch(() => null);
		if (recipe) (isPicture(file) ? offer : useRecipe)({ recipe, name });
		else if (!isPicture(file)) notice(say('foundNot', { name }));
	}
}

function offer(what) {
	const { task, model, seeds } = what.recipe;
	found = what;
	notice(say('found', { name: what.name, recipe: [task, model, ...(seeds ?? [])].filter(Boolean).join(', ') }), true);
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
	} catch { // no clipboard outside secure contexts
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

/** Ask for the key, once for all who need it; true if one was given. */
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

/** Learn models and limits, until the service knows the key and has looked at its models. */
async function connect(wrong = false) {
	try {
		const [{ data }, { limits }] = await Promise.all(['v1/models', 'info'].map(path => askJson(path)));
		settings.setModels(data, limits);
		minutes = limits.job_minutes;
		put($('kept'), say('kept', { n: number(minutes) }) + (/^(127|\[::1|localhost)/.test(location.hostname) ? say('local') : ''));
		put($('trouble'), '');
		catchUp().catch(() => {});
		if (data.every(({ enlarger }) => !enlarger.kind && !enlarger.error)) throw new Error('');
	} catch (problem) {
		put($('trouble'), problem.message);
		const refused = problem.status === 401;
		if (refused ? await needKey(wrong) : await pause(2000).then(() => true)) connect(refused);
	}
}

/** A job is over. */
function ended(card, problem) {
	if (!problem) connect();
	else if (card === selected) settings.complain(problem.param, problem.message);
}

/** Stop the chosen job; `asked`: if it runs, ask first. */
function stop(asked) {
	const card = selected;
	if (!asked || card.state !== 'running') return cancel(card);
	put($('stop-title'), say('stop-title', { name: card.name }));
	$('ask-stop').returnValue = '';
	$('ask-stop').onclose = () => { if ($('ask-stop').returnValue && busy(card)) cancel(card); };
	return $('ask-stop').showModal();
}

// What is listened to

const CLICKS = {
	choose: () => $('file').click(), add: () => $('file').click(), cancel: () => stop(false), retry: () => retry(selected),
	remove: () => remove(selected), again: () => again(selected), onward: () => shownFile(file => addPictures([file])),
	clear: () => cards.filter(finished).forEach(remove), 'save-all': saveAll, copy,
	'stop-all': () => cards.filter(busy).reverse().forEach(cancel), 'found-use': () => useRecipe(found),
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
	$('tabs').addEventListener('click', () => { $('found').hidden = true; });
	$('after').onerror = () => selected?.id && refresh(selected).catch(() => {});
	$('variants').onchange = () => { variant = $('variants').selectedIndex; draw(); };
	document.onkeydown = event => {
		if (event.key !== 'Escape' || event.target.closest('input, textarea, select, dialog') || !selected || !busy(selected)) return;
		event.preventDefault(); // or it closes the question at once
		stop(true);
	};
	window.onbeforeunload = event => { if (cards.some(unsent)) event.preventDefault(); };
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
setUp(draw, needKey, ended, card => settings.refusal(card, card.request));
settings.setUp(draw);
compare.setUp();
mask.setUp(drawForm);
listen();
connect();
recall().then(draw);
