/** The viewer: a picture, or two of the same scene with a line between them, with zoom. */
import { $, between, MOVES, put, setSource } from './dom.js';
import { number } from './text.js';

const MOST = 32; // screen pixels for one of the picture's
const PAN = 60; // screen pixels that an arrow key moves

const view = $('view'), before = $('before'), after = $('after'), cut = $('cut');
let width = 1, height = 1, scale = 1, x = 0, y = 0, fitted = true, both = false;

/** Show a picture of a size, and an earlier one with it or none. The same address again keeps zoom and place. */
export function show(address, size, name, earlier = null) {
  const same = after.getAttribute('src') === address;
  both = earlier !== null;
  [width, height] = size;
  setSource(before, earlier);
  setSource(after, address);
  before.alt = after.alt = name;
  for (const { style } of [before, after]) [style.width, style.height] = [`${width}px`, `${height}px`];
  for (const id of ['divider', 'cut-box']) $(id).hidden = !both;
  if (!same) [cut.value, fitted] = [50, true];
  draw();
}

const fit = () => Math.min(view.clientWidth / width, view.clientHeight / height, 4);

/** A side of the picture stays in the view: centred if it is smaller, without gaps if larger. */
const placed = (at, room, size) => (size <= room ? (room - size) / 2 : between(at, room - size, 0));

function ends() {
  return [Math.max(0, x), Math.min(view.clientWidth, x + width * scale)];
}

function draw() {
  if (view.clientWidth === 0) return;
  if (fitted) scale = fit();
  x = placed(x, view.clientWidth, width * scale);
  y = placed(y, view.clientHeight, height * scale);
  before.style.transform = after.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  const [left, right] = ends();
  const line = left + ((right - left) * cut.value) / 100;
  $('layer-after').style.clipPath = both ? `inset(0 0 0 ${line}px)` : 'none';
  $('layer-before').style.clipPath = `inset(0 ${view.clientWidth - line}px 0 0)`;
  $('divider').style.left = `${line - 1}px`;
  $('tag-before').style.left = `${left + 8}px`;
  $('tag-after').style.right = `${view.clientWidth - right + 8}px`;
  $('tag-before').hidden = !both || line - left < 90;
  $('tag-after').hidden = !both || right - line < 90;
  view.classList.toggle('movable', !fitted);
  put($('zoom-now'), `${number(scale * devicePixelRatio * 100)} %`);
}

/** Zoom about a point of the view, by default its middle. */
function zoomTo(wanted, atX = view.clientWidth / 2, atY = view.clientHeight / 2) {
  const next = between(wanted, fit(), MOST);
  fitted = next === fit();
  x = atX - ((atX - x) * next) / scale;
  y = atY - ((atY - y) * next) / scale;
  scale = next;
  draw();
}

function pan(right, down) {
  x += right;
  y += down;
  draw();
}

const bigger = () => zoomTo(scale * 1.25), smaller = () => zoomTo(scale / 1.25), whole = () => zoomTo(0);
const KEYS = { '+': bigger, '=': bigger, '-': smaller, 0: whole };

function placeOf(event) {
  const box = view.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function setLine([at]) {
  const [left, right] = ends();
  cut.value = ((at - left) / (right - left)) * 100;
  draw();
}

/** The pointer moves the line, near it or while all is in view, else the picture. */
function watchPointer() {
  let last = null, line = false;
  view.onpointerdown = event => {
    if (event.button !== 0) return;
    view.setPointerCapture(event.pointerId);
    last = placeOf(event);
    line = both && (fitted || Math.abs(last[0] - parseFloat($('divider').style.left)) < 24);
    if (line) setLine(last);
  };
  view.onpointermove = event => {
    if (!last) return;
    const now = placeOf(event);
    if (line) setLine(now);
    else pan(now[0] - last[0], now[1] - last[1]);
    last = now;
  };
  view.onpointerup = view.onpointercancel = () => { last = null; };
  view.addEventListener('wheel', event => {
    if (event.deltaY > 0 && fitted) return; // nothing to zoom out of: the page scrolls
    event.preventDefault();
    zoomTo(scale * Math.exp(-event.deltaY / 400), ...placeOf(event));
  }, { passive: false });
}

export function setUp() {
  cut.oninput = draw;
  $('zoom-in').onclick = bigger;
  $('zoom-out').onclick = smaller;
  $('zoom-fit').onclick = whole;
  $('zoom-one').onclick = () => zoomTo(1 / devicePixelRatio);
  $('pixels').onclick = () => $('pixels').setAttribute('aria-pressed', view.classList.toggle('squares'));
  $('viewer').onkeydown = event => {
    const act = KEYS[event.key], move = event.target === view && MOVES[event.key];
    if (!(act || move) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (act) act();
    else pan(-PAN * move[0], -PAN * move[1]);
  };
  watchPointer();
  new ResizeObserver(draw).observe(view);
}
