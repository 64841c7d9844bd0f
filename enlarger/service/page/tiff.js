/** TIFF: grey or RGB of 8 or 16 bits, in strips, plain, LZW or deflated. How TIFF and WebP are turned. */

const MOST_EXIF = 1 << 18; // bytes at the end of a file

/** The whole numbers by tag of a TIFF, or of EXIF. */
function tagsOf(view, little) {
	const short = at => view.getUint16(at, little), long = at => view.getUint32(at, little), tags = {};
	const start = long(4);
	for (let at = start + 2; at < start + 2 + 12 * short(start); at += 12) {
		const count = long(at + 4), [read, bytes] = short(at + 2) === 3 ? [short, 2] : [long, 4];
		const from = bytes * count > 4 ? long(at + 8) : at + 8;
		if ([3, 4].includes(short(at + 2))) tags[short(at)] = Array.from({ length: count }, (_, i) => read(from + i * bytes));
	}
	return tags;
}

const isLittle = view => view.getUint16(0) === 0x4949;

/** How a WebP is turned (1 to 8), which browsers pass over. */
export async function turnOf(file) {
	const buffer = await file.slice(-MOST_EXIF).arrayBuffer(), found = /EXIF.{4}(Exif\0\0)?(?=II|MM)/s.exec(new TextDecoder('latin1').decode(buffer));
	const view = found && new DataView(buffer, found.index + found[0].length);
	return (view && tagsOf(view, isLittle(view))[274]?.[0]) ?? 1;
}

/** A TIFF's picture and how it is turned; throws for others. */
export async function tiffOf(file) {
	const view = new DataView(await file.arrayBuffer()), little = isLittle(view), tags = tagsOf(view, little);
	const tag = (number, otherwise) => tags[number]?.[0] ?? otherwise;
	const [width, height, samples, deep] = [tag(256), tag(257), tag(277, 1), tag(258) / 8], grey = samples < 3, step = samples * deep;
	const image = new ImageData(width, height), high = tag(278, height);
	if (![1, 2].includes(deep) || tag(284, 1) !== 1 || ![1, 2].includes(tag(262))) throw new Error('another kind');
	let to = 0;
	for (const [i, offset] of tags[273].entries()) {
		const strip = await unpacked(new Uint8Array(view.buffer, offset, tags[279][i]), tag(259, 1), width * high * step);
		if (tag(317) === 2) addUp(strip, width * step, samples, deep, little);
		const first = little ? deep - 1 : 0, end = Math.min(high, height - i * high) * width * step; // the high bytes
		for (let from = first; from < end; from += step) {
			for (let c = 0; c < 3; c++) image.data[to++] = strip[from + (grey ? 0 : c * deep)];
			image.data[to++] = samples === 4 ? strip[from + 3 * deep] : 255;
		}
	}
	return [image, tag(274)];
}

async function unpacked(bytes, kind, size) {
	if (kind === 1) return bytes;
	if (kind === 5) return lzw(bytes, size);
	return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'))).arrayBuffer());
}

/** Each code stands for a piece of what was written before, `starts` and `lengths` in `out` itself. */
function lzw(bytes, size) {
	const out = new Uint8Array(size), starts = [], lengths = [];
	let held = 0, bits = 0, width = 9, next = 258, last = -1, at = 0;
	for (const byte of bytes) {
		[held, bits] = [(held << 8) | byte, bits + 8];
		if (bits < width) continue;
		bits -= width;
		const code = held >>> bits, from = at;
		held &= (1 << bits) - 1;
		if (code === 257) break;
		if (code === 256) [width, next, last] = [9, 258, -1];
		else {
			if (last >= 0) [starts[next], lengths[next++]] = [last, from - last + 1];
			if (code < 256) out[at++] = code;
			else for (let i = 0; i < lengths[code]; i++) out[at++] = out[starts[code] + i];
			last = from;
			if (next + 1 >= 1 << width && width < 12) width++;
		}
	}
	return out;
}

/** Undo differences. */
function addUp(strip, row, samples, deep, little) {
	const view = new DataView(strip.buffer, strip.byteOffset), lag = samples * deep;
	for (let at = lag; at < strip.length; at += deep) {
		if (at % row < lag) continue;
		if (deep === 1) strip[at] += strip[at - lag];
		else view.setUint16(at, view.getUint16(at, little) + view.getUint16(at - lag, little), little);
	}
}
