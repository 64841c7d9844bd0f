/** What is sent for a task, by the page and by the code it shows. */

// option of the page -> field of the service, in the order that they are sent in
const NAMES = {
	model: 'model', prompt: 'prompt', negative: 'negative_prompt', factor: 'scale', target: 'target_size', long_edge: 'long_edge', megapixels: 'megapixels', detail: 'detail', restore: 'restore', strength: 'strength',
	noise: 'noise_level', steps: 'num_inference_steps', guidance: 'guidance_scale', seed: 'seed', count: 'n',
	format: 'output_format', quality: 'output_compression', width: 'size',
};
const ROUTES = { upscale: ['upscale', 'image'], inpaint: ['edits', 'image', 'mask'], refine: ['edits', 'image'], generate: ['generations'] };

/** The options of a task, without those (by their names in Python) that its model has no use for. */
export function optionsFor(task, unused, { format, sizing }) {
	const own = { upscale: ['times', sizing], inpaint: ['strength'], refine: ['strength'], generate: ['width', 'height'] }[task];
	const upscaling = task === 'upscale' ? ['detail', 'restore', 'noise'] : [];
	const taken = ['prompt', 'negative', 'steps', 'guidance', ...upscaling].filter(name => !unused.includes(name === 'noise' ? 'noise_level' : name));
	return ['model', ...own, ...taken, 'seed', 'count', 'format', ...(format === 'png' ? [] : ['quality'])];
}

/** The option that a field of the service's answer is about. */
export const optionOf = param => Object.keys(NAMES).find(name => NAMES[name] === param);

/** Path, fields and files of a request. Empty options are left out. */
export function requestOf(task, unused, values) {
	const shown = optionsFor(task, unused, values);
	const fields = task === 'upscale' ? { response_format: 'b64_json' } : { prompt: '' };
	for (const [option, name] of Object.entries(NAMES)) {
		if (shown.includes(option) && values[option] !== null && values[option] !== '') fields[name] = values[option];
	}
	if (fields.size) fields.size = `${values.width}x${values.height}`;
	const [route, ...files] = ROUTES[task];
	if (route === 'edits') fields.mask_mode = files[1] ? 'luminance' : 'none';
	return { task, path: `v1/images/${route}`, fields, files };
}

/** The size that a picture would be given. */
export function sizeOf({ fields: { scale = 1, target_size: target, long_edge: edge, megapixels } }, size) {
	const exact = /^(\d+)x(\d+)$/.exec(target)?.slice(1).map(Number);
	const factor = edge ? edge / Math.max(...size) : megapixels ? Math.sqrt((megapixels * 1e6) / (size[0] * size[1])) : scale;
	return exact ?? size.map(side => Math.max(1, Math.round(side * factor)));
}

/** Body and headers; `live` asks for previews. */
export function bodyOf({ fields, files }, pictures) {
	if (files.length === 0) {
		return { body: JSON.stringify({ ...fields, live: true }), headers: { 'Content-Type': 'application/json' } };
	}
	const body = new FormData();
	for (const name of files) body.append(name, pictures[name], pictures[name].name);
	for (const [name, value] of Object.entries({ ...fields, live: true })) body.append(name, value);
	return { body, headers: {} };
}
