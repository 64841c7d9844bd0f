/** The row of cards under the stage: a button for each picture, with its state. */
import { $, icon, label, make, put, setSource } from './dom.js';
import { busy, cards, finished, percentOf, remove } from './jobs.js';
import { number, say, sizeText } from './text.js';

const shown = new Map(); // card -> its elements

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
  $('clear').disabled = !cards.some(finished);
}

function partsOf(card, pick) {
  const [name, state, bar] = ['name', 'state', 'mini'].map(kind => make('span', { class: kind }));
  const image = make('img', { alt: '', class: 'thumb' });
  const button = make('button', { class: 'pick', title: card.name }, image, name, state, bar);
  const close = make('button', { class: 'close', 'data-i': '' }, icon('close'));
  put(name, card.name);
  label(close, say('removeOne', { name: card.name }));
  button.onclick = () => pick(card);
  close.onclick = () => {
    const at = cards.indexOf(card);
    remove(card);
    ($('cards').children[Math.min(at, cards.length - 1)]?.firstChild ?? $('choose')).focus();
  };
  return { item: make('li', {}, button, close), image, state, bar, button };
}

function stateOf(card) {
  if (card.state === 'running') return `${number(percentOf(card))} %`;
  return card.state === 'ready' && card.size ? sizeText(card.size) : say(card.state);
}

function update(card, { item, image, state, bar, button }, selected) {
  item.dataset.state = card.state;
  button.setAttribute('aria-current', selected);
  setSource(image, card.thumb);
  put(state, stateOf(card));
  bar.hidden = !busy(card);
  bar.style.width = `${percentOf(card)}%`;
}
