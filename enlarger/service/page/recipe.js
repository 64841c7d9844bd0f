/** Recipes: what made a picture, from its file, JSON or A1111's text. */
import { isPicture } from './dom.js';

const MOST = 1 << 20; // bytes of a recipe
const EDGE = 1 << 18; // bytes at both ends of a file

/** The recipe that a file carries, or null. */
export async function recipeIn(file) {
	if (!isPicture(file)) return file.size > MOST ? null : parsed(await file.text());
	return parsed(await (latin(await bytesOf(file, 1, 3)) === 'PNG' ? inPng : inEdges)(file));
}

const bytesOf = async (file, at, size) => new Uint8Array(await file.slice(at, at + size).arrayBuffer());
const decoded = (bytes, code) => new TextDecoder(code).decode(bytes);
const latin = bytes => decoded(bytes, 'latin1');

/** Our text of a PNG, or A1111's; both come before the pixels. */
async function inPng(file) {
	const texts = {};
	for (let at = 8, left = 1000; left && at < file.size; left--) {
		const head = await bytesOf(file, at, 8), size = new DataView(head.buffer).getUint32(0), kind = latin(head.subarray(4));
		if (kind === 'IDAT') break;
		if (/^(iTX|tEX)t$/.test(kind) && size <= MOST) {
			const chunk = await bytesOf(file, at + 8, size), end = chunk.indexOf(0), long = kind === 'iTXt';
			const start = long ? chunk.indexOf(0, chunk.indexOf(0, end + 3) + 1) : end;
			texts[latin(chunk.subarray(0, end))] ??= decoded(chunk.subarray(start + 1), long ? 'utf-8' : 'latin1');
		}
		at += 12 + size;
	}
	return texts.enlarger ?? texts.parameters ?? '';
}

/** Our JSON in XMP, or A1111's text in EXIF. */
async function inEdges(file) {
	const bytes = await bytesOf(new Blob([file.slice(0, EDGE), file.slice(Math.max(EDGE, file.size - EDGE))]), 0, 2 * EDGE);
	const ours = /<enlarger:Generation>([^<]*)/.exec(decoded(bytes)), at = latin(bytes).indexOf('UNICODE\0');
	if (ours) return ours[1].replace(/&(lt|gt|amp);/g, (_, name) => ({ lt: '<', gt: '>', amp: '&' })[name]);
	return at < 0 ? '' : decoded(bytes.subarray(at + 8), 'utf-16be');
}

function parsed(text) {
	try {
		const recipe = JSON.parse(text);
		return typeof recipe.task === 'string' && recipe.options instanceof Object ? recipe : null;
	} catch {
		return recipeOf(text);
	}
}

/** What A1111 writes: the prompt, the negative one, and a line of names with values. */
function recipeOf(text) {
	const lines = text.split(/\r?\n/), end = lines.findIndex(line => /^Steps: \d/.test(line));
	if (end < 0) return null;
	const cut = lines.slice(0, end).findIndex(line => line.startsWith('Negative prompt:')), prompts = lines.slice(0, end);
	const negative = cut < 0 ? '' : prompts.splice(cut).join('\n').slice(16).trim();
	const fields = [...lines[end].matchAll(/(\w[\w ]*): ("(?:\\.|[^"\\])*"|[^,]*)/g)].filter(([, name]) => !/hash|^Version/.test(name));
	const { Steps: steps, 'CFG scale': guidance, Seed: seed, Size = '', Model: model, 'Denoising strength': strength, ...others } = (
		Object.fromEntries(fields.map(([, name, value]) => [name, value])));
	const [width, height] = Size.split('x');
	const options = { prompt: prompts.join('\n').trim(), negative, steps, guidance, width, height, strength, ...others };
	return { task: strength && !others['Hires upscale'] ? 'refine' : 'generate', model, options, seeds: [seed] };
}

/** A recipe under the names of the form; what it does not say is left as it is. */
export function settingsOf({ task, model, options, seeds }) {
	const { by: factor, noise_level: noise, seed, size: target, ...others } = options;
	return { ...others, factor, noise, target, seed: seeds?.[0] ?? seed, task, model };
}
