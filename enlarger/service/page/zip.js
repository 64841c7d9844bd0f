/** A ZIP archive of files as they are: pictures are compressed already. */

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
	for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
	return value;
});

async function crcOf(blob) {
	let crc = -1;
	for (const reader = blob.stream().getReader(); ; ) {
		const { value, done } = await reader.read();
		if (done) return ~crc >>> 0;
		for (const byte of value) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
	}
}

/** Numbers of two bytes, or four (`long`), the low one first. */
const record = (...fields) => new Uint16Array(fields.flat(2));
const long = value => [value & 0xffff, value >>> 16];

/** One archive, of less than 4 GiB. */
export async function zipOf(files, name) {
	const now = new Date(), parts = [], directory = [];
	const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
	const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
	let offset = 0, size = 0;
	for (const file of files) {
		const label = new TextEncoder().encode(file.name);
		const about = [20, 0x800, 0, time, date, long(await crcOf(file)), long(file.size), long(file.size), label.length, 0];
		parts.push(record(long(0x04034b50), about), label, file);
		directory.push(record(long(0x02014b50), 20, about, 0, 0, 0, long(0), long(offset)), label);
		offset += 30 + label.length + file.size;
		size += 46 + label.length;
	}
	const end = record(long(0x06054b50), 0, 0, files.length, files.length, long(size), long(offset), 0);
	return new File([...parts, ...directory, end], name, { type: 'application/zip' });
}
