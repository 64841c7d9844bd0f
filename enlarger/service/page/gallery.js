/** The row of cards: a button for each picture, with its state. */
import { $, icon, label, make, put, setSource } from './dom.js';
import { busy, cards, finished, percentOf, remove } from './jobs.js';
import { lasting, number, say, sizeText } from './text.js';

// card -> its elements, which stay: what has the focus keeps it
const shown = new Map();

/** Draw the cards; `selected` is marked, `pick(card)` is called for one that is chosen. */
export function draw(selected, pick) {
	for (const [card, { item }] of shown) {
		if (cards.includes(card)) continue;
		item.remove();
		shown.delete(card);
	}
	cards.forEach((card, at) => {
		if (!shown.has(card)) shown.set(card, partsOf(card, pick));
		const { item } = shown.get(card), there = $('cards').children[at] ?? null;
		if (there !== item) $('cards').insertBefore(item, there);
		update(card, shown.get(card), card === selected);
	});
	$('gallery').hidden = cards.length === 0;
	$('clear').hidden = !cards.some(finished);
	$('stop-all').hidden = cards.filter(busy).length < 2;
	$('save-all').hidden = cards.filter(card => card.state === 'succeeded').length < 2;
	put($('batch'), standing());
	if (selected !== seen) shown.get(selected)?.item.scrollIntoView({ block: 'nearest', inline: 'nearest' });
	seen = selected;
}

let seen = null;

const workOf = ({ size }) => (size ? size[0] * size[1] : 1e6);

/** How far those are that were started together, and how long the rest takes. */
function standing() {
	const batches = new Set(cards.filter(busy).map(({ batch }) => batch));
	const all = cards.filter(({ batch }) => batches.has(batch));
	if (all.length < 2) return '';
	let whole = 0, work = 0;
	for (const card of all) {
		whole += workOf(card);
		work += workOf(card) * (finished(card) || (card.job?.progress ?? 0));
	}
	const seconds = (Date.now() - all[0].batch) / 1000; // a batch is called by its time
	const left = work > 0.02 * whole ? say('about', { time: lasting(((whole - work) * seconds) / work) }) : '';
	return say('batch', { n: all.filter(finished).length, total: all.length }) + left;
}

function partsOf(card, pick) {
	const [name, state, bar] = ['name', 'state', 'mini'].map(kind => make('span', { class: kind }));
	const image = make('img', { alt: '', class: 'thumb' });
	const button = make('button', { class: 'pick', title: card.name }, image, name, state, bar);
	const close = make('button', { class: 'close', 'data-i': '' }, icon('close'));
	put(name, card.name);
	label(close, say('removeOne', { name: card.name }));
	button.onclick = () => pick(card);
	close.onclick = async () => {
		const at = cards.indexOf(card);
		await remove(card);
		($('cards').children[Math.min(at, cards.length - 1)]?.firstChild ?? $('choose')).focus();
	};
	return { item: make('li', {}, button, close), image, state, bar, button };
}

function stateOf(card) {
	if (card.state === 'running') return `${number(percentOf(card))} %`;
	if (card.state === 'ready') return card.unfit ? say('unfit') : card.size ? sizeText(card.size) : say('ready');
	return say(card.state);
}

function update(card, { item, image, state, bar, button }, selected) {
	item.dataset.state = card.state;
	button.ariaCurrent = selected;
	setSource(image, card.thumb);
	put(state, stateOf(card));
	bar.hidden = !busy(card);
	bar.style.width = `${percentOf(card)}%`;
}
