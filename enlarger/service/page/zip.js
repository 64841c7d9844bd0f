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

/** Little-endian numbers, as [bytes, value]. */
function record(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [bytes, value] of fields) {
    if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += bytes;
  }
  return view;
}

/** One archive, of less than 4 GiB. */
export async function zipOf(files, name) {
  const now = new Date(), parts = [], directory = [];
  const time = [2, (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1)];
  const date = [2, ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate()];
  let offset = 0;
  for (const file of files) {
    const label = new TextEncoder().encode(file.name);
    const about = [[2, 20], [2, 0x800], [2, 0], time, date, [4, await crcOf(file)], [4, file.size], [4, file.size], [2, label.length], [2, 0]];
    parts.push(record([4, 0x04034b50], ...about), label, file);
    directory.push(record([4, 0x02014b50], [2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), label);
    offset += 30 + label.length + file.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = record([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]);
  return new File([...parts, ...directory, end], name, { type: 'application/zip' });
}
