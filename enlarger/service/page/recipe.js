/** Recipes: what made a picture, read from PNG and JSON files, as settings of the page. */
import { isJson } from './dom.js';

const SIGNATURE = '\x89PNG\r\n\x1a\n';
const MOST = 1 << 20; // bytes of a recipe

/** The recipe that a file carries, or null: a JSON file, or a PNG with an iTXt chunk called "enlarger". */
export async function recipeIn(file) {
	if (isJson(file)) return file.size > MOST ? null : parsed(await file.text());
	if (latin(await bytesOf(file, 0, 8)) !== SIGNATURE) return null;
	for (let at = 8; at + 12 <= file.size; ) {
		const head = await bytesOf(file, at, 8);
		const size = new DataView(head.buffer).getUint32(0);
		if (latin(head.subarray(4)) === 'iTXt' && size <= MOST) {
			const text = textOf(await bytesOf(file, at + 8, size));
			if (text !== null) return parsed(text);
		}
		at += 12 + size;
	}
	return null;
}

const bytesOf = async (file, at, size) => new Uint8Array(await file.slice(at, at + size).arrayBuffer());
const latin = bytes => String.fromCharCode(...bytes);

/** The text of an iTXt chunk, if its keyword is "enlarger"; ours are not compressed. */
function textOf(chunk) {
	const word = chunk.indexOf(0);
	if (word !== 8 || latin(chunk.subarray(0, word)) !== 'enlarger') return null;
	const start = chunk.indexOf(0, chunk.indexOf(0, word + 3) + 1) + 1;
	return chunk[word + 1] === 0 ? new TextDecoder().decode(chunk.subarray(start)) : null;
}

function parsed(text) {
	try {
		const recipe = JSON.parse(text);
		return typeof recipe.task === 'string' && recipe.options instanceof Object ? recipe : null;
	} catch {
		return null;
	}
}

/** The settings that a recipe stands for; what it does not say is left as it is. */
export function settingsOf({ task, model, options, seeds }) {
	const { by, noise_level: noise, seed } = options;
	return { ...options, factor: by, noise, seed: seeds?.[0] ?? seed, task, model };
}
