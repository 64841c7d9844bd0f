/** The request as code. A key is read from the variable ENLARGER_KEY. */
import { address, key } from './api.js';

const OPENAI = ['model', 'prompt', 'n', 'size', 'output_format', 'output_compression'];
const LIBRARY = { scale: 'by', target_size: 'size', negative_prompt: 'negative', num_inference_steps: 'steps', guidance_scale: 'guidance', n: 'count' };
const ANSWERED = ['response_format', 'output_format', 'output_compression']; // not the library's

const shell = text => `'${String(text).replaceAll("'", "'\\''")}'`;
const quote = value => JSON.stringify(value); // numbers and strings of JSON are Python's
const pairs = (items, indent) => items.map(([name, value]) => `${indent}${quote(name)}: ${quote(value)},\n`).join('');
const keywords = items => items.map(([name, value]) => `    ${name}=${quote(value)},\n`).join('');
const opened = (files, left, right) => files.map(([field, name]) => `    ${left}${field}${right}open(${quote(name)}, "rb"),\n`).join('');
const written = (out, item) => `with open("${out}", "wb") as file:\n    file.write(base64.b64decode(${item}))\n`;

export const clientOf = task => (task === 'upscale' ? 'enlarger.Client' : 'openai');

/** `kind`: 0 for curl, 1 for requests, 2 for a client. */
export function snippetOf(kind, request, name) {
	const files = request.files.map(field => [field, field === 'mask' ? 'mask.png' : name]);
	const out = `result.${request.fields.output_format.replace('jpeg', 'jpg')}`;
	const write = [curl, requests, request.task === 'upscale' ? enlarger : openai][kind];
	return write(request, files, Object.entries(request.fields), out);
}

function curl({ path }, files, fields, out) {
	const lines = [`curl ${shell(address(path))}`];
	if (key.get()) lines.push('-H "Authorization: Bearer $ENLARGER_KEY"');
	if (files.length === 0) lines.push(`--json ${shell(quote(Object.fromEntries(fields)))}`);
	for (const [field, name] of files) lines.push(`-F ${shell(`${field}=@"${name.replace(/[\\"]/g, '\\$&')}"`)}`);
	if (files.length) for (const [field, value] of fields) lines.push(`--form-string ${shell(`${field}=${value}`)}`);
	return `${lines.join(' \\\n  ')} \\\n  | jq -r '.data[0].b64_json' | base64 -d > ${out}\n`;
}

function requests({ path }, files, fields, out) {
	const sent = files.length ? '    data=data,\n    files=files,\n' : '    json=data,\n';
	return `import base64
import os

import requests

data = {
${pairs(fields, '    ')}}
${files.length ? `files = {\n${opened(files, '"', '": ')}}\n` : ''}answer = requests.post(
    ${quote(address(path))},
${sent}    headers={"Authorization": "Bearer " + os.environ.get("ENLARGER_KEY", "none")},
)
answer.raise_for_status()
${written(out, 'answer.json()["data"][0]["b64_json"]')}`;
}

function openai({ task }, files, fields, out) {
	const [own, extra] = [true, false].map(is => fields.filter(([name]) => OPENAI.includes(name) === is));
	return `import base64
import os

from openai import OpenAI

client = OpenAI(base_url=${quote(address('v1'))}, api_key=os.environ.get("ENLARGER_KEY", "none"))
answer = client.images.${task === 'generate' ? 'generate' : 'edit'}(
${opened(files, '', '=')}${keywords(own)}${extra.length ? `    extra_body={\n${pairs(extra, '        ')}    },\n` : ''})
${written(out, 'answer.data[0].b64_json')}`;
}

function enlarger({ fields: { output_format: format, output_compression: quality } }, files, fields, out) {
	const own = fields.filter(([name]) => !ANSWERED.includes(name)).map(([name, value]) => [LIBRARY[name] ?? name, value]);
	const kept = format === 'png' ? `with open("${out}", "wb") as file:\n    file.write(result.files[0])` : `result.image.convert("RGB").save("${out}", quality=${quality})`;
	return `import enlarger

client = enlarger.Client(${quote(address('.'))})
result = client.upscale(
    ${quote(files[0][1])},
${keywords(own)})
${kept}
`;
}
