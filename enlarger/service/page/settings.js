/** The form: its options, what is in them, what is wrong with it. */
import { $, all, make, put } from './dom.js';
import { optionOf, optionsFor, sizeOf } from './request.js';
import { number, say, sizeText } from './text.js';

const TASKS = ['upscale', 'inpaint', 'refine', 'generate'];
const NUMBERS = ['factor', 'detail', 'restore', 'strength', 'width', 'height', 'count', 'steps', 'guidance', 'noise', 'quality', 'seed', 'long_edge', 'megapixels'];
const TEXTS = ['prompt', 'negative', 'model', 'format', 'sizing', 'target'];
const HERE = [...NUMBERS, ...TEXTS, 'task'];
const IDLE = /(^upscale 1|^score 6|_score 2.5|^feather 4|^preserve exact| |null|undefined)$/; // defaults, and what is empty
const STRENGTHS = { inpaint: 1, refine: 0.5 };

const CHOSEN = 'enlarger.models';

let models = [], limits = {}, told = () => {};
let chosen = {}; // task -> model
try {
	chosen = { ...JSON.parse(localStorage.getItem(CHOSEN)) };
} catch {} // not of our making

export let task = 'upscale';
const modelNow = () => models.find(model => model.id === $('model').value)?.enlarger;
/** Options that the model has no use for; at first, the bundled one. */
export const unusedNow = () => modelNow()?.kind ? modelNow().unused_options : ['prompt', 'negative', 'steps', 'guidance', 'noise_level'];
const able = () => models.filter(model => model.enlarger.tasks.includes(task));

/** Is there a model for the task? */
export const possible = () => able().length > 0;

export function setUp(changed) {
	told = changed;
	$('settings').addEventListener('input', ({ target }) => {
		if (target.name === 'times') showFactor(target.value);
		if (target.id === 'model') {
			chosen[task] = target.value;
			localStorage.setItem(CHOSEN, JSON.stringify(chosen));
		}
		if (target.id === 'strength') STRENGTHS[task] = target.value;
		clearError(target);
		refresh();
	});
	$('dice').onclick = () => {
		[$('seed').value] = crypto.getRandomValues(new Uint32Array(1));
		clearError($('seed'));
		refresh();
	};
	for (const name of TASKS) {
		const tab = make('button', { id: `tab-${name}`, role: 'tab', 'aria-controls': 'settings' }, say(name));
		tab.onclick = () => chooseTask(name);
		$('tabs').append(tab);
	}
	$('tabs').onkeydown = event => {
		const at = TASKS.indexOf(task);
		const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
		if (to === undefined) return;
		event.preventDefault();
		chooseTask(TASKS.at(to % TASKS.length));
		$(`tab-${task}`).focus();
	};
	chooseTask(task);
}

/** Take over the service's list of models, and its limits. */
export function setModels(list, most) {
	[models, limits] = [list, most];
	fillModels();
}

const mega = (value, digits = 1) => number(value / 1e6, digits);
const nameOf = ({ id, enlarger }) => (enlarger.kind === 'bundled' ? say('bundled') : id);

/** Why a picture is not taken, or ''. */
export function refusal({ name, size, file }, request) {
	const over = (words, n, most, more) => (n > most ? say(words, { name, n: mega(n), most: mega(most), ...more }) : '');
	const model = models.find(({ id }) => id === request.fields.model), large = over('manyBytes', file?.size, limits.image);
	if (large || !size || !model) return large;
	const { input_pixels: most, output_pixels: mostMade } = model.enlarger;
	const made = sizeOf(request, size), [across, down] = made.map((side, i) => side / size[i]), times = Math.min(across, down);
	const stretched = Math.abs(made[0] - size[0] * down) > 1 && Math.abs(made[1] - size[1] * across) > 1;
	if (times < 1 || times > 16 || stretched) return say('misfit', { name, size: sizeText(made) });
	return over('manyPixels', size[0] * size[1], most, { size: sizeText(size), model: nameOf(model) })
		|| over('manyMade', made[0] * made[1], mostMade, { size: sizeText(made) });
}

export function chooseTask(name) {
	task = name;
	$('settings').scrollTop = 0;
	for (const tab of $('tabs').children) {
		const on = tab.id === `tab-${name}`;
		tab.ariaSelected = on;
		tab.tabIndex = on ? 0 : -1;
	}
	$('settings').setAttribute('aria-labelledby', `tab-${name}`);
	put($('prompt-label'), say(name === 'inpaint' ? 'prompt-inpaint' : 'prompt'));
	if (name in STRENGTHS) $('strength').value = STRENGTHS[name];
	fillModels();
}

/** The models of the task, with what was chosen for it last, else the first that can be read. */
function fillModels() {
	const some = able();
	const wanted = some.find(({ id }) => id === chosen[task]) ?? some.find(({ enlarger }) => !enlarger.error) ?? some[0];
	$('model').replaceChildren(...some.map(model => make('option', { value: model.id }, nameOf(model))));
	if (wanted) $('model').value = wanted.id;
	refresh();
}

function showFactor(times) {
	$('sizes').hidden = times !== 'other';
	if (times !== 'other') [$('factor').value, $('sizing').value] = [times, 'factor'];
}

function refresh() {
	const shown = optionsFor(task, unusedNow(), read());
	for (const field of all('[data-option]')) field.hidden = !shown.includes(field.dataset.option);
	Object.assign($('noise'), modelNow()?.kind === 'x4' ? { max: 350, step: 1 } : { max: 10, step: 'any' });
	for (const id of ['detail', 'restore', 'strength']) put($(`${id}-now`), number(Number($(id).value), 2));
	$('missing').hidden = possible() || models.length === 0;
	$('options').hidden = !$('missing').hidden;
	put($('missing-text'), say('missing', { task: say(task) }));
	const model = modelNow();
	put($('model-help'), model ? model.error ?? say(model.loaded_bytes === null ? 'unloaded' : 'loaded') : '');
	told();
}

/** The values; empty is null for numbers, '' for texts. */
export function read() {
	const values = {};
	for (const name of TEXTS) values[name] = $(name).value.trim();
	for (const name of NUMBERS) values[name] = $(name).value === '' ? null : Number($(name).value);
	return values;
}

/** Say what is wrong at its field; true if nothing is. */
export function check() {
	const wrong = [...all('#options :is(input, textarea)')].filter(input => !input.validity.valid && !input.closest('[hidden]'));
	for (const input of wrong) showError(input, say(input.pattern ? 'pattern' : input.step === 'any' ? 'range' : 'whole', input));
	const { width, height } = read();
	if (task === 'generate' && !wrong.length && (width === null) !== (height === null)) {
		wrong.push($(width === null ? 'width' : 'height'));
		showError(wrong[0], say('both'));
	}
	wrong[0]?.focus();
	return wrong.length === 0;
}

function showError(input, words) {
	clearError(input);
	input.closest('[data-option]').append(make('p', { id: `${input.id}-error`, class: 'error' }, words));
	input.ariaInvalid = true;
	input.setAttribute('aria-describedby', `${input.id}-error`);
	input.closest('details')?.setAttribute('open', '');
}

function clearError(input) {
	$(`${input.id}-error`)?.remove();
	input.ariaInvalid = null;
	input.removeAttribute('aria-describedby');
}

/** Show the service's complaint at the field it names. */
export function complain(param, words) {
	const input = $(optionOf(param) ?? '');
	if (input && !input.closest('[hidden]')) showError(input, words);
}

/** Put a recipe's settings into the form; returns what could not be honoured. */
export function restore(settings) {
	const notes = [];
	if (TASKS.includes(settings.task)) {
		chosen[settings.task] = settings.model;
		chooseTask(settings.task);
	}
	const instead = $('model').value;
	if (instead && instead !== settings.model) notes.push(say('foundModel', { model: settings.model, instead }));
	const rest = Object.keys(settings).filter(name => !HERE.includes(name) && ![false, 0].includes(settings[name]));
	if (!TASKS.includes(settings.task)) rest.push('task');
	if (settings.seed > Number.MAX_SAFE_INTEGER) rest.push('seed');
	const other = rest.map(name => `${name} ${settings[name]}`).filter(words => !IDLE.test(words)).join(', ');
	if (other) notes.push(say('foundRest', { other }));
	if (rest.includes('seed')) settings.seed = '';
	for (const name of [...NUMBERS, 'prompt', 'negative', 'target']) {
		const value = settings[name] ?? '';
		if (settings[name] !== undefined) $(name).value = NUMBERS.includes(name) && isNaN(value) ? '' : value;
		clearError($(name));
	}
	if (settings.strength !== undefined) STRENGTHS[task] = settings.strength;
	const sizing = ['target', 'long_edge', 'megapixels'].find(name => settings[name]);
	const radio = [...all('[name=times]')].find(({ value }) => !sizing && value === $('factor').value) ?? document.querySelector('[value=other]');
	radio.checked = true;
	showFactor(radio.value);
	$('sizing').value = sizing ?? 'factor';
	refresh();
	return notes;
}
