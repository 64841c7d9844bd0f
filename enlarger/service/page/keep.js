/** What this browser remembers: the cards in localStorage, the pictures they were made from in a cache. */

const CARDS = 'enlarger.cards';
const MOST = 60; // cards

/** The remembered cards; what is not of our making counts for nothing. */
export function remembered() {
  try {
    return JSON.parse(localStorage.getItem(CARDS)).filter(card => typeof card.key === 'string' && typeof card.name === 'string');
  } catch {
    return [];
  }
}

export function remember(cards) {
  const plain = cards.slice(0, MOST).map(({ key, name, task, request, state, id, size, thumb, message }) => (
    { key, name, task, request, state, id, size, thumb, message }));
  try {
    localStorage.setItem(CARDS, JSON.stringify(plain));
  } catch {
    // no room: the page works without a memory
  }
}

/** Do something with the stored pictures; without secure contexts there are none. */
const pictures = async act => {
  try {
    return await act(await caches.open('enlarger'));
  } catch {
    return undefined;
  }
};

export const keepPicture = ({ key, file }) => pictures(box => box.put(`/${key}`, new Response(file)));
export const dropPicture = ({ key }) => pictures(box => box.delete(`/${key}`));

export async function pictureOf({ key, name }) {
  const found = await pictures(box => box.match(`/${key}`));
  return found && new File([await found.blob()], name, { type: found.headers.get('Content-Type') ?? '' });
}
