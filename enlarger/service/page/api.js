/** Talks to the service: requests, refusals in words, the events of all jobs. */
import { pause } from './dom.js';
import { say } from './text.js';

// The service says something more often; a proxy may hold a dead stream open.
const SILENCE = 45000; // milliseconds

/** A refusal: the words, the field, when to come back. Status 0: not reached. */
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

/** Hear of all jobs: `opened()` once, then `hear(what, kind)`, until the stream breaks. True if it was there. */
export async function stream(opened, hear, signal) {
	const silent = new AbortController();
	let timer, there = false;
	const alive = () => {
		clearTimeout(timer);
		// a proxy that holds streams back is told apart early by the missing first words
		timer = setTimeout(() => silent.abort(), there ? SILENCE : 4000);
	};
	alive();
	try {
		const answer = await ask('v1/jobs/events', { signal: AbortSignal.any([signal, silent.signal]) });
		const first = () => {
			if (!there) {
				there = true;
				opened();
			}
			alive();
		};
		for await (const { event, data } of eventsOf(answer.body, first)) hear(JSON.parse(data), event);
	} catch (error) {
		if (error instanceof Problem) throw error; // anything else: the stream broke
	} finally {
		clearTimeout(timer);
	}
	return there;
}

/** The events of a text/event-stream with one line of data each: `{event, data}`. `alive()` is called for every piece, pings too. */
async function* eventsOf(body, alive) {
	const reader = body.pipeThrough(new TextDecoderStream()).getReader();
	for (let rest = '', event = {}; ; ) {
		const { value, done } = await reader.read();
		if (done) return;
		alive();
		const lines = (rest + value).split(/\r?\n/);
		rest = lines.pop();
		for (const line of lines) {
			const [, name, text] = /^([^:]*):? ?(.*)$/.exec(line);
			event[name] = text;
			if (line !== '') continue;
			if (event.data) yield event;
			event = {};
		}
	}
}
