/** The viewer: a picture, or two with a line between them. */
import { $, between, MOVES, put, setSource } from './dom.js';
import { number } from './text.js';

const MOST = 32; // times a pixel is enlarged
const PAN = 60; // pixels that an arrow key moves
const NEAR = 3; // times that the magnifier enlarges

const view = $('view'), before = $('before'), after = $('after'), cut = $('cut'), glass = $('glass');
let width = 1, height = 1, scale = 1, x = 0, y = 0, fitted = true, both = false, fresh = false, spot = null;

/** Show a picture and, if there is one, an earlier. The same again keeps its place. */
export function show(address, size, name, earlier = null) {
	const same = after.getAttribute('src') === address;
	both = earlier !== null;
	[width, height] = size;
	setSource(before, earlier);
	setSource(after, address);
	before.alt = after.alt = name;
	for (const { style } of [before, after]) [style.width, style.height] = [`${width}px`, `${height}px`];
	for (const node of [$('divider'), cut, glass.firstChild]) node.hidden = !both;
	if (!same) [cut.value, fitted, fresh] = [50, true, both];
	draw();
}

/** Show a result at first in its own pixels, where most is to be seen. */
async function open() {
	fresh = false;
	if (fit() >= 1) return;
	const shown = after.src;
	zoomTo(1);
	await before.decode().catch(() => {});
	if (after.src !== shown || scale !== 1 || !before.naturalWidth) return;
	const [atX, atY] = busiest(view.clientWidth / width, view.clientHeight / height);
	[x, y] = [view.clientWidth / 2 - atX * width, view.clientHeight / 2 - atY * height];
	draw();
}

/** The middle of the window (in shares of the picture) in which most changes. */
function busiest(...shares) {
	const side = 256, pen = new OffscreenCanvas(side, side).getContext('2d');
	pen.drawImage(before, 0, 0, side, side);
	const { data } = pen.getImageData(0, 0, side, side), [wide, high] = shares.map(share => between(Math.round(share * side), 2, side));
	let most = -1, place;
	for (let top = 0; top + high <= side; top += 8) {
		for (let left = 0; left + wide <= side; left += 8) {
			let sum = 0;
			for (let row = top; row < top + high; row++) {
				const end = row * side + left + wide - 1;
				for (let i = row * side + left; i < end; i++) sum += Math.abs(data[4 * i + 1] - data[4 * i + 5]); // green
			}
			if (sum > most) [most, place] = [sum, [(left + wide / 2) / side, (top + high / 2) / side]];
		}
	}
	return place;
}

const fit = () => Math.min(view.clientWidth / width, view.clientHeight / height, 4);

/** A side of the picture stays in the view: centred if it is smaller, without gaps if larger. */
const placed = (at, room, size) => (size <= room ? (room - size) / 2 : between(at, room - size, 0));

/** Where the picture begins and ends in the view, from left to right. */
function ends() {
	return [Math.max(0, x), Math.min(view.clientWidth, x + width * scale)];
}

function draw() {
	if (view.clientWidth === 0) return;
	if (fresh) open();
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
	magnify();
}

/** The magnifier shows the same spot before and after, side by side. */
function magnify() {
	glass.hidden = $('loupe').ariaPressed !== 'true';
	if (glass.hidden) return;
	const [atX, atY] = spot ?? [view.clientWidth / 2, view.clientHeight / 2], near = scale * NEAR;
	Object.assign(glass.style, { left: `${atX}px`, top: `${atY}px` });
	[before, after].forEach((image, i) => {
		const half = glass.children[i];
		half.style.backgroundImage = image.hidden ? 'none' : `url("${image.src}")`;
		half.style.backgroundSize = `${width * near}px ${height * near}px`;
		const [left, top] = [[atX - x, half.clientWidth], [atY - y, half.clientHeight]].map(([at, room]) => room / 2 - at * NEAR);
		half.style.backgroundPosition = `${left}px ${top}px`;
	});
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
const useLoupe = () => {
	$('loupe').ariaPressed = glass.hidden;
	spot = null;
	magnify();
};
const KEYS = { '+': bigger, '=': bigger, '-': smaller, 0: whole, m: useLoupe };

function placeOf(event) {
	const box = view.getBoundingClientRect();
	return [event.clientX - box.left, event.clientY - box.top];
}

function setLine([at]) {
	const [left, right] = ends();
	cut.value = ((at - left) / (right - left)) * 100;
	draw();
}

/** The pointer moves the line, or away from it a zoomed picture. */
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
		const now = placeOf(event);
		spot = now;
		if (!last) return magnify();
		if (line) setLine(now);
		else if (!glass.hidden && event.pointerType === 'touch') magnify();
		else pan(now[0] - last[0], now[1] - last[1]);
		last = now;
		return magnify();
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
	$('loupe').onclick = useLoupe;
	$('pixels').onclick = () => { $('pixels').ariaPressed = view.classList.toggle('squares'); };
	$('viewer').onkeydown = event => {
		const act = KEYS[event.key], move = event.target === view && MOVES[event.key];
		if (!(act || move) || event.ctrlKey || event.metaKey || event.altKey) return;
		event.preventDefault();
		if (act) act();
		else {
			spot = null;
			pan(-PAN * move[0], -PAN * move[1]);
		}
	};
	$('loupe').ariaPressed = $('pixels').ariaPressed = false;
	watchPointer();
	new ResizeObserver(draw).observe(view);
}
