/** The page's elements. Data becomes text, never markup. */
import { say } from './text.js';

export const $ = id => document.getElementById(id);
export const touch = matchMedia('(hover: none)').matches;
export const all = selector => document.querySelectorAll(selector);

export function make(tag, attributes = {}, ...children) {
	const node = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
	node.append(...children);
	return node;
}

export function icon(name) {
	const [svg, use] = ['svg', 'use'].map(tag => document.createElementNS('http://www.w3.org/2000/svg', tag));
	svg.setAttribute('viewBox', '0 0 24 24');
	svg.ariaHidden = true;
	use.setAttribute('href', `page/icons.svg#${name}`);
	svg.append(use);
	return svg;
}

export function label(node, text) {
	node.ariaLabel = text;
	if (node.matches('button')) node.title = text;
}

/** Put texts (`data-t`), labels (`data-l`) and icons (`data-i`) in place, by the name there or the element's own. */
export function fill() {
	for (const node of all('[data-tools]')) node.append(...node.dataset.tools.split(' ').map(id => make('button', { id, 'data-i': '' })));
	for (const node of all('[data-t]')) {
		const name = node.dataset.t || node.id || node.htmlFor || node.value;
		node.textContent = say(touch && 'touch' in node.dataset ? `${name}-touch` : name);
	}
	for (const node of all('[data-l]')) label(node, say(node.dataset.l || node.id));
	for (const node of all('label[data-option]')) {
		const id = node.dataset.option, field = node.firstChild, end = name => make('span', {}, say(`${id}-${name}`));
		field.id = id;
		field.setAttribute('aria-labelledby', `${id}-label`);
		node.prepend(make('span', { class: 'row' }, make('span', { id: `${id}-label`, class: 'grow' }, say(id)), make('span', { id: `${id}-now`, class: 'number' })));
		if (field.type === 'range') node.append(make('span', { class: 'help ends' }, end('low'), end('high')));
	}
	for (const node of all('[data-i]')) {
		node.append(icon(node.dataset.i || node.id));
		if (node.matches('button')) label(node, say(node.dataset.i || node.id));
	}
	for (const node of all('[type=number]:not([required])')) node.placeholder = say('automatic');
	$('seed').placeholder = say('random');
	$('prompt').placeholder = say('example');
}

/** Set a text where it differs: nothing is announced twice. */
export function put(node, text) {
	if (node.textContent !== text) node.textContent = text;
}

export function setSource(image, address) {
	image.hidden = !address;
	if (address && image.getAttribute('src') !== address) image.src = address;
}

export function announce(text) {
	$('live').textContent = $('live').textContent === text ? `${text}\u00a0` : text;
}

export const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
	setTimeout(resolve, milliseconds);
	signal?.addEventListener('abort', () => reject(signal.reason));
});

export function save(file) {
	const link = make('a', { href: URL.createObjectURL(file), download: file.name });
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

export const between = (value, least, most) => Math.min(Math.max(value, least), Math.max(least, most));
export const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
export const stem = name => name.replace(/\.[^.]*$/, '') || 'picture';
export const isPicture = ({ name, type }) => /^(image\/|$)/.test(type) && !/json$/i.test(type || name);
