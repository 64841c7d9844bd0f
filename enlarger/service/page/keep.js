/** What this browser remembers: the cards in localStorage, the pictures they were made from in IndexedDB. */

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

const settled = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

let opened;

/** Do one thing with the stored pictures; a browser that stores none answers undefined. */
async function pictures(act) {
  try {
    if (!opened) {
      const request = indexedDB.open('enlarger', 1);
      request.onupgradeneeded = () => request.result.createObjectStore('pictures');
      opened = settled(request);
    }
    return await settled(act((await opened).transaction('pictures', 'readwrite').objectStore('pictures')));
  } catch {
    return undefined;
  }
}

export const keepPicture = (key, file) => pictures(store => store.put(file, key));
export const pictureOf = key => pictures(store => store.get(key));
export const dropPicture = key => pictures(store => store.delete(key));
