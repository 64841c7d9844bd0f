/** Talks to the service: requests with the key, refusals in words, and the events of a job. */
import { pause } from './dom.js';
import { say } from './text.js';

const SILENCE = 45000; // milliseconds; the service says something more often

/** What the service refused: its words, the field, and when to come back. Status 0: it was not reached. */
export class Problem extends Error {
  constructor(status, error, wait = null) {
    super(error?.message || say(status ? 'status' : 'network', { status }));
    Object.assign(this, { status, wait, param: error?.param });
  }
}

export const key = {
  get: () => sessionStorage.getItem('enlarger.key') ?? '',
  set: value => sessionStorage.setItem('enlarger.key', value),
};

export const address = path => new URL(path, document.baseURI).href;
export const over = job => ['succeeded', 'failed', 'canceled'].includes(job.status);

/** Send a request; throws Problem for every answer that is not a success. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key.get() && { Authorization: `Bearer ${key.get()}` }) };
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers });
  } catch (error) {
    throw options.signal?.aborted ? error : new Problem(0);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const wait = answer.headers.get('Retry-After');
  throw new Problem(answer.status, body.error, wait && Math.max(1, Number(wait) || 5));
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** Call `changed(what, kind)` for everything that happens to a job until it is over. A stream that breaks is taken up
 * where it ended; where streams do not get through, the job is asked for instead. `lost(bool)` tells of it. */
export async function follow(id, changed, lost, signal) {
  const seen = { number: null, over: false };
  const hear = (data, kind) => {
    lost(false);
    seen.over ||= over(data);
    changed(data, kind);
  };
  for (let failures = 0; ; failures++) {
    const before = seen.number;
    try {
      hear(await askJson(`v1/jobs/${id}`, { signal }));
      if (!seen.over && failures < 3) await stream(id, seen, hear, signal);
      if (seen.over) return;
    } catch (problem) {
      if (signal.aborted || (problem.status >= 400 && !problem.wait && problem.status < 500)) throw problem;
      lost(true);
    }
    if (seen.number !== before) failures = 0;
    await pause(1000, signal);
  }
}

async function stream(id, seen, hear, signal) {
  const silent = new AbortController();
  let timer;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silent.abort(), SILENCE);
  };
  alive();
  try {
    const headers = seen.number === null ? {} : { 'Last-Event-ID': seen.number };
    const answer = await ask(`v1/jobs/${id}/events`, { headers, signal: AbortSignal.any([signal, silent.signal]) });
    for await (const event of eventsOf(answer.body, alive)) {
      seen.number = event.id ?? seen.number;
      hear(JSON.parse(event.data), event.event);
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem) throw error; // anything else: the stream broke
  } finally {
    clearTimeout(timer);
  }
}

/** The events of a text/event-stream: `{id, event, data}`. */
async function* eventsOf(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = '', event = {}; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
      event[name] = name === 'data' && event.data ? `${event.data}\n${text}` : text;
      if (line !== '') continue;
      if (event.data) yield event;
      event = {};
    }
  }
}
