/** What is sent for a task, said once: the page sends it, and the code it shows is written from it. */

const NAMES = {
	model: 'model', prompt: 'prompt', negative: 'negative_prompt', factor: 'scale', detail: 'detail', restore: 'restore', strength: 'strength',
	noise: 'noise_level', steps: 'num_inference_steps', guidance: 'guidance_scale', seed: 'seed', count: 'n',
	format: 'output_format', quality: 'output_compression', width: 'size',
};
const ROUTES = { upscale: ['upscale', 'image'], inpaint: ['edits', 'image', 'mask'], refine: ['edits', 'image'], generate: ['generations'] };

/** Which options a task has, without those that its model has no use for, by their names in Python, and by the file format. */
export function optionsFor(task, unused, format) {
	const own = { upscale: ['factor'], inpaint: ['strength'], refine: ['strength'], generate: ['width', 'height'] }[task];
	const upscaling = task === 'upscale' ? ['detail', 'restore', 'noise'] : [];
	const taken = ['prompt', 'negative', 'steps', 'guidance', ...upscaling].filter(name => !unused.includes(name === 'noise' ? 'noise_level' : name));
	return ['model', ...own, ...taken, 'seed', 'count', 'format', ...(format === 'png' ? [] : ['quality'])];
}

/** The option that a field of the service's answer is about. */
export const optionOf = param => Object.keys(NAMES).find(name => NAMES[name] === param);

/** Path, fields and files of a request. Empty options are left out. */
export function requestOf(task, unused, values) {
	const shown = optionsFor(task, unused, values.format);
	const fields = task === 'upscale' ? { response_format: 'b64_json' } : { prompt: '' };
	for (const [option, name] of Object.entries(NAMES)) {
		if (shown.includes(option) && values[option] !== null && values[option] !== '') fields[name] = values[option];
	}
	if (fields.size) fields.size = `${values.width}x${values.height}`;
	const [route, ...files] = ROUTES[task];
	if (route === 'edits') fields.mask_mode = files[1] ? 'luminance' : 'none';
	return { task, path: `v1/images/${route}`, fields, files };
}

/** The body and headers to send a request with; `live` asks for previews. */
export function bodyOf({ fields, files }, pictures) {
	if (files.length === 0) {
		return { body: JSON.stringify({ ...fields, live: true }), headers: { 'Content-Type': 'application/json' } };
	}
	const body = new FormData();
	for (const name of files) body.append(name, pictures[name], pictures[name].name);
	for (const [name, value] of Object.entries({ ...fields, live: true })) body.append(name, value);
	return { body, headers: {} };
}
