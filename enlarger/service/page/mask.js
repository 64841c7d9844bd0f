/** Mask painting: strokes in the picture's own pixels. */
import { $, between, MOVES, put } from './dom.js';

const MOST = 1400; // pixels on the screen
const MIX = { paint: 'source-over', erase: 'destination-out', invert: 'source-out', wipe: 'destination-out' };

const canvas = $('canvas'), brush = $('brush'), pen = canvas.getContext('2d', { willReadFrequently: true });
// A stroke is `{kind, size, points}`; inverting and wiping are strokes without points, so that each can be undone.
let card = null, tool = 'paint', stroke = null, at = [0, 0], told = () => {};

export function open(next) {
	if (card === next) return;
	card = next;
	card.strokes ??= [];
	$('canvas-picture').src = card.url;
	const small = Math.min(1, MOST / Math.max(...card.size));
	[canvas.width, canvas.height] = card.size.map(side => Math.max(1, Math.round(side * small)));
	at = card.size.map(side => side / 2);
	const side = Math.min(...card.size);
	Object.assign(brush, { min: 1, max: Math.ceil(side / 2), value: Math.ceil(side / 8) });
	fitEasel();
	redraw();
}

export const painted = card => card.painted;

/** The mask as a PNG of the picture's size: white is repainted. */
export async function exported({ size, strokes }) {
	const whole = new OffscreenCanvas(...size);
	const ink = whole.getContext('2d');
	replay(ink, strokes, 1, '#fff');
	ink.globalCompositeOperation = 'destination-over';
	ink.fillStyle = '#000';
	ink.fillRect(0, 0, ...size);
	return new File([await whole.convertToBlob()], 'mask.png', { type: 'image/png' });
}

/** All strokes again from nothing: undo, and the mask in full size. */
function replay(ink, strokes, small, colour) {
	ink.reset();
	ink.scale(small, small);
	ink.strokeStyle = ink.fillStyle = colour;
	ink.lineCap = ink.lineJoin = 'round';
	for (const item of strokes) drawOne(ink, item);
}

function drawOne(ink, { kind, size, points }) {
	ink.globalCompositeOperation = MIX[kind];
	if (!points) return ink.fillRect(0, 0, 1e6, 1e6);
	ink.beginPath();
	// Chromium paints nothing for a line of length zero.
	if (points.every(point => point.every((value, axis) => value === points[0][axis]))) { // a dot
		ink.arc(...points[0], size / 2, 0, 2 * Math.PI);
		return ink.fill();
	}
	ink.lineWidth = size;
	for (const point of points) ink.lineTo(...point);
	return ink.stroke();
}

function redraw() {
	replay(pen, card.strokes, canvas.width / card.size[0], getComputedStyle(canvas).color);
	const { buffer } = pen.getImageData(0, 0, canvas.width, canvas.height).data;
	card.painted = new Uint32Array(buffer).some(pixel => pixel >>> 24 > 64); // erasing leaves faint edges
	$('undo').disabled = card.strokes.length === 0;
	told();
}

/** Give picture and canvas the largest size that fits. */
function fitEasel() {
	const { clientWidth, clientHeight } = $('easel').parentElement;
	if (!card || clientWidth === 0) return;
	const scale = Math.min((clientWidth - 24) / card.size[0], (clientHeight - 24) / card.size[1], 8);
	[$('easel').style.width, $('easel').style.height] = card.size.map(side => `${side * scale}px`);
	showBrush();
}

function showBrush() {
	const size = Number(brush.value), scale = canvas.clientWidth / card.size[0];
	const [left, top] = at.map(value => (value - size / 2) * scale);
	put($('brush-now'), `${size} px`);
	Object.assign($('brush-at').style, { width: `${size * scale}px`, height: `${size * scale}px`, left: `${left}px`, top: `${top}px` });
}

function begin() {
	stroke = { kind: tool, size: Number(brush.value), points: [at] };
	card.strokes.push(stroke);
	drawOne(pen, stroke);
}

function moveTo(point) {
	at = point.map((value, axis) => between(value, 0, card.size[axis]));
	showBrush();
	stroke?.points.push(at);
	if (stroke) drawOne(pen, { ...stroke, points: stroke.points.slice(-2) }); // the last piece
}

function end() {
	if (stroke) redraw();
	stroke = null;
}

function add(kind) {
	card.strokes.push({ kind });
	redraw();
}

function undo() {
	stroke = null;
	card.strokes.pop();
	redraw();
}

function use(name) {
	tool = name;
	for (const id of ['paint', 'erase']) $(id).ariaPressed = id === name;
}

function resize(by) {
	brush.value = Number(brush.value) + by * Math.ceil(brush.value / 8);
	showBrush();
}

function onKey(event) {
	const name = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
	const keys = { '[': () => resize(-1), ']': () => resize(1), e: () => use(tool === 'erase' ? 'paint' : 'erase') };
	if (control && name === 'z') undo();
	else if (control || event.altKey) return;
	else if (keys[name]) keys[name]();
	else if (event.target !== canvas) return;
	else if (name === ' ') { if (!event.repeat) begin(); }
	else if (MOVES[event.key]) {
		const far = Math.max(1, brush.value * (event.shiftKey ? 1 : 0.25));
		moveTo(at.map((value, axis) => value + MOVES[event.key][axis] * far));
	} else return;
	event.preventDefault();
}

export function setUp(changed) {
	told = changed;
	const place = ({ clientX, clientY }) => {
		const box = canvas.getBoundingClientRect();
		return [((clientX - box.left) / box.width) * card.size[0], ((clientY - box.top) / box.height) * card.size[1]];
	};
	canvas.onpointerdown = event => {
		if (event.button !== 0) return;
		canvas.setPointerCapture(event.pointerId);
		moveTo(place(event));
		begin();
	};
	canvas.onpointermove = event => moveTo(place(event));
	canvas.onpointerup = canvas.onpointercancel = canvas.onblur = end;
	canvas.onkeyup = event => event.key === ' ' && end();
	$('painter').onkeydown = onKey;
	brush.oninput = showBrush;
	for (const id of ['paint', 'erase']) $(id).onclick = () => use(id);
	for (const id of ['invert', 'wipe']) $(id).onclick = () => add(id);
	$('undo').onclick = undo;
	use(tool);
	new ResizeObserver(fitEasel).observe($('easel').parentElement);
}
