/** What this browser remembers: cards in localStorage, their pictures in a cache. */

const CARD = 'enlarger.card.';
const LOCK = 'enlarger.tab.';
const FIELDS = ['key', 'at', 'tab', 'batch', 'name', 'task', 'request', 'state', 'id', 'size', 'thumb', 'message', 'once'];

export const unique = () => crypto.getRandomValues(new Uint32Array(4)).join('-');

export const tab = unique();
// Held while the tab is there, so that others know.
navigator.locks?.request(LOCK + tab, () => new Promise(() => {}));

export const openTabs = async () => ((await navigator.locks?.query())?.held ?? []).map(({ name }) => name.slice(LOCK.length));

/** A remembered card, if it is of our making. */
function cardOf(text) {
	try {
		const card = JSON.parse(text);
		return typeof card.key === 'string' && typeof card.name === 'string' && Array.isArray(card.at) ? card : null;
	} catch {
		return null;
	}
}

export const remembered = () => (
	Object.keys(localStorage).filter(name => name.startsWith(CARD)).map(name => cardOf(localStorage.getItem(name))).filter(Boolean));

/** Write a card down; other tabs hear of it by the `storage` event. */
export function remember(card, changes = {}) {
	try {
		const lasting = Object.fromEntries(FIELDS.map(name => [name, { ...card, ...changes }[name]]));
		localStorage.setItem(CARD + card.key, JSON.stringify(lasting));
	} catch {} // no room
}

export function forget({ key }) {
	localStorage.removeItem(CARD + key);
	pictures(box => box.delete(`/${key}`));
}

/** What other tabs do: `changed(card)` and `gone(key)`. */
export function watchTabs(changed, gone) {
	window.addEventListener('storage', ({ key, newValue }) => {
		if (!key?.startsWith(CARD)) return;
		const card = newValue && cardOf(newValue);
		if (card) changed(card);
		else gone(key.slice(CARD.length));
	});
}

/** The stored pictures; without secure contexts there are none. */
const pictures = async act => {
	try {
		return await act(await caches.open('enlarger'));
	} catch {} // no store
};

export const keepPicture = ({ key, file }) => pictures(box => box.put(`/${key}`, new Response(file)));

export async function pictureOf({ key, name }) {
	const found = await pictures(box => box.match(`/${key}`));
	return found && new File([await found.blob()], name, { type: found.headers.get('Content-Type') ?? '' });
}
