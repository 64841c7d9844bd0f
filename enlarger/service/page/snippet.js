/** The request of the page, as code for other places. */
import { address, key } from './api.js';

const shell = text => `'${String(text).replaceAll("'", "'\\''")}'`;
const quote = value => JSON.stringify(value); // numbers and strings of JSON are Python's
const OPENAI = ['model', 'prompt', 'n', 'size', 'output_format', 'output_compression'];
const LIBRARY = { scale: 'by', negative_prompt: 'negative', num_inference_steps: 'steps', guidance_scale: 'guidance', n: 'count' };
const ANSWERED = ['response_format', 'output_format', 'output_compression']; // not the library's

/** What the third kind of code uses. */
export const clientOf = task => (task === 'upscale' ? 'enlarger.Client' : 'openai');

/** `kind` is curl, requests or client; `name` the picture's file name. */
export function snippetOf(kind, request, name) {
  const files = request.files.map(field => [field, field === 'mask' ? 'mask.png' : name]);
  const fields = Object.entries(request.fields);
  const out = `result.${request.fields.output_format.replace('jpeg', 'jpg')}`;
  if (kind === 'curl') return curl(request, files, fields, out);
  const secret = key.get() && 'os.environ["ENLARGER_KEY"]';
  const start = secret ? 'import os\n' : '';
  const write = kind === 'requests' ? requests : request.task === 'upscale' ? enlarger : openai;
  return write(request, files, fields, out, secret, start);
}

function curl({ path }, files, fields, out) {
  const lines = [`curl ${shell(address(path))}`];
  if (key.get()) lines.push('-H "Authorization: Bearer $ENLARGER_KEY"');
  if (files.length === 0) lines.push(`--json ${shell(quote(Object.fromEntries(fields)))}`);
  for (const [field, name] of files) lines.push(`-F ${shell(`${field}=@"${name.replace(/[\\"]/g, '\\$&')}"`)}`);
  if (files.length) for (const [field, value] of fields) lines.push(`--form-string ${shell(`${field}=${value}`)}`);
  return `${lines.join(' \\\n  ')} \\\n  | jq -r '.data[0].b64_json' | base64 -d > ${out}\n`;
}

const pairs = (items, indent) => items.map(([name, value]) => `${indent}${quote(name)}: ${quote(value)},\n`).join('');
const keywords = items => items.map(([name, value]) => `    ${name}=${quote(value)},\n`).join('');
const opened = (files, between) => files.map(([field, name]) => `    ${between(field)}open(${quote(name)}, "rb"),\n`).join('');
const written = (out, item) => `with open("${out}", "wb") as file:\n    file.write(base64.b64decode(${item}))\n`;

function requests({ path }, files, fields, out, secret, start) {
  const sent = files.length ? ',\n    data=data,\n    files=files' : ',\n    json=data';
  return `import base64
${start}
import requests

data = {
${pairs(fields, '    ')}}
${files.length ? `files = {\n${opened(files, field => `"${field}": `)}}\n` : ''}answer = requests.post(
    ${quote(address(path))}${sent},${secret && `\n    headers={"Authorization": "Bearer " + ${secret}},`}
)
answer.raise_for_status()
${written(out, 'answer.json()["data"][0]["b64_json"]')}`;
}

function openai({ task }, files, fields, out, secret, start) {
  const extra = pairs(fields.filter(([name]) => !OPENAI.includes(name)), '        ');
  return `import base64
${start}
from openai import OpenAI

client = OpenAI(base_url=${quote(address('v1'))}, api_key=${secret || '"none"'})
answer = client.images.${task === 'generate' ? 'generate' : 'edit'}(
${opened(files, field => `${field}=`)}${keywords(fields.filter(([name]) => OPENAI.includes(name)))}${extra && `    extra_body={\n${extra}    },\n`})
${written(out, 'answer.data[0].b64_json')}`;
}

/** The client reads ENLARGER_KEY itself. */
function enlarger({ fields: { output_format: format, output_compression: quality } }, files, fields, out) {
  const own = fields.filter(([name]) => !ANSWERED.includes(name)).map(([name, value]) => [LIBRARY[name] ?? name, value]);
  const kept = format === 'png' ? `open("${out}", "wb").write(result.files[0])` : `result.image.convert("RGB").save("${out}", quality=${quality})`;
  return `import enlarger

client = enlarger.Client(${quote(address('.'))})
result = client.upscale(
    ${quote(files[0][1])},
${keywords(own)})
${kept}
`;
}
