/** Small words for the page's elements. Data becomes text, never markup. */
import { say } from './text.js';

export const $ = id => document.getElementById(id);
/** Whether there is neither mouse nor, most likely, a keyboard. */
export const touch = matchMedia('(hover: none)').matches;
export const all = selector => document.querySelectorAll(selector);

/** An element with attributes and children. */
export function make(tag, attributes = {}, ...children) {
	const node = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
	node.append(...children);
	return node;
}

/** A drawing from the icon file; screen readers pass over it. */
export function icon(name) {
	const [svg, use] = ['svg', 'use'].map(tag => document.createElementNS('http://www.w3.org/2000/svg', tag));
	svg.setAttribute('viewBox', '0 0 24 24');
	svg.setAttribute('aria-hidden', 'true');
	use.setAttribute('href', `page/icons.svg#${name}`);
	svg.append(use);
	return svg;
}

export function label(node, text) {
	node.setAttribute('aria-label', text);
	if (node.matches('button')) node.title = text;
}

/** Put words and icons where the page wants them: `data-t` text, `data-l` a label, `data-i` an icon, by the name given
 * there or the element's own. */
export function fill() {
	for (const node of all('[data-t]')) {
		const name = node.dataset.t || node.id || node.htmlFor;
		node.textContent = say(touch && 'touch' in node.dataset ? `${name}-touch` : name);
	}
	for (const node of all('[data-l]')) label(node, say(node.dataset.l || node.id));
	for (const node of all('label[data-option]')) {
		const id = node.dataset.option;
		node.prepend(make('span', { class: 'row' }, make('span', { id: `${id}-label`, class: 'grow' }, say(id)), make('span', { id: `${id}-now`, class: 'number' })));
		$(id).setAttribute('aria-labelledby', `${id}-label`);
	}
	for (const node of all('[data-i]')) {
		node.append(icon(node.dataset.i || node.id));
		if (node.matches('button')) label(node, say(node.dataset.i || node.id));
	}
	for (const node of all('[type=number]:not([required])')) node.placeholder = say('automatic');
	$('seed').placeholder = say('random');
	$('prompt').placeholder = say('example');
}

/** Set a text only where it differs, so that nothing is announced twice. */
export function put(node, text) {
	if (node.textContent !== text) node.textContent = text;
}

export function setSource(image, address) {
	image.hidden = !address;
	if (address && image.getAttribute('src') !== address) image.src = address;
}

/** Tell people who listen instead of look. */
export function announce(text) {
	$('live').textContent = $('live').textContent === text ? `${text}\u00a0` : text;
}

export const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
	setTimeout(resolve, milliseconds);
	signal?.addEventListener('abort', () => reject(signal.reason));
});

/** Let a person keep a file. */
export function save(file) {
	const link = make('a', { href: URL.createObjectURL(file), download: file.name });
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

export const between = (value, least, most) => Math.min(Math.max(value, least), Math.max(least, most));
export const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
export const stem = name => name.replace(/\.[^.]*$/, '') || 'picture';
export const isJson = file => /json$/i.test(file.type || file.name);
