// The load, in a process of its own: argv names a file with the options of one run as JSON, standard output gets its
// result. Each stream is either closed (every connection asks again as soon as it is answered) or open (`rate` requests
// a second at random moments, whatever the answers do). An open stream counts a latency from the moment at which its
// request was due, also when no connection was free for it: what a slow answer keeps waiting is not left out. With
// `turnMs` the streams, closed ones, take turns of so long: whatever else the machine does meets all of them alike.
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { createHistogram } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

const { streams, seconds, turnMs } = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8'));
const HEADER_END = Buffer.from('\r\n\r\n');
const LONGEST_US = 60_000_000;
/** When the time is over, or where a number of requests is asked for, nothing was answered for so long: faults. */
const GRACE_MS = 10_000;
const LOOK_EVERY_MS = 500;

/** The kernel takes connections in before Node's server does, which many of them keep from its work for a while. */
const SETTLE_MS = 300;

let turn = 0;
const prepared = await Promise.all(streams.map(prepareStream));
await sleep(SETTLE_MS);
const endsAt = performance.now() + seconds * 1000;
const running = prepared.map(({ begin }) => begin());
if (turnMs !== undefined)
  setInterval(() => {
    turn = (turn + 1) % streams.length;
    for (const { goOn } of prepared) goOn();
  }, turnMs);
const results = await Promise.all(running);
const { user, system } = process.cpuUsage();
process.stdout.write(JSON.stringify({ streams: results, cpuMs: (user + system) / 1000 }));
process.exit();

/** Connects; answers what begins the stream, which resolves to its result, and what tells it that a turn is over. */
async function prepareStream(
  {
    url,
    headers = {},
    bodiesFile,
    connections = 20,
    rate,
    amount,
    inTurn = false,
    isCoarse = false,
    isAwake = false,
  },
  index,
) {
  const target = new URL(url);
  // Without bodies there is nothing to send: GET.
  const bodies = bodiesFile === undefined ? undefined : JSON.parse(readFileSync(bodiesFile, 'utf8'));
  const contentType =
    bodies === undefined || 'content-type' in headers ? [] : [['content-type', 'application/json']];
  const head = [
    `${bodies === undefined ? 'GET' : 'POST'} ${target.pathname}${target.search} HTTP/1.1`,
    `host: ${target.host}`,
    ...[...contentType, ...Object.entries(headers)].map(([name, value]) => `${name}: ${value}`),
  ].join('\r\n');
  const histogram = createHistogram({ lowest: 1, highest: LONGEST_US, figures: 3 });
  const free = [];
  const due = [];
  let asked = 0;
  let answered = 0;
  let succeeded = 0;
  let errors = 0;
  let end;
  const done = new Promise((resolve) => {
    end = resolve;
  });

  let begunAt = 0;
  let nextAt = 0;
  let answeredAt = 0;
  let isGivenUp = false;
  const isItsTurn = () => turnMs === undefined || turn === index;
  const isOver = () => isGivenUp || (amount === undefined ? performance.now() >= endsAt : asked >= amount);

  function requestText() {
    if (bodies === undefined) {
      asked++;
      return `${head}\r\n\r\n`;
    }
    const body = bodies[inTurn ? asked % bodies.length : Math.floor(Math.random() * bodies.length)];
    asked++;
    return `${head}\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
  }

  function connect() {
    return new Promise((resolve, reject) => {
      const socket = net.connect({ host: target.hostname, port: Number(target.port), noDelay: true });
      const line = { socket, dueAt: undefined, received: undefined, bodyEnd: 0 };
      socket.once('connect', () => resolve(line));
      socket.on('error', (error) => {
        reject(error);
        fail(line);
      });
      socket.on('close', () => fail(line));
      socket.on('data', (chunk) => read(line, chunk));
    });
  }

  function fail(line) {
    if (line.dueAt === undefined) return;
    line.dueAt = undefined;
    errors++;
    finish();
  }

  function send(line, dueAt) {
    line.dueAt = dueAt;
    line.socket.write(requestText(), 'latin1');
  }

  function read(line, chunk) {
    line.received = line.received === undefined ? chunk : Buffer.concat([line.received, chunk]);
    if (line.bodyEnd === 0) {
      const headerEnd = line.received.indexOf(HEADER_END);
      if (headerEnd < 0) return;
      const header = line.received.latin1Slice(0, headerEnd).toLowerCase();
      const at = header.indexOf('\r\ncontent-length: ');
      line.bodyEnd =
        headerEnd + HEADER_END.length + (at < 0 ? 0 : Number.parseInt(header.slice(at + 18), 10));
    }
    if (line.received.length < line.bodyEnd) return;
    answered++;
    answeredAt = performance.now();
    // "HTTP/1.1 2": the first figure of the status.
    if (line.received[9] === 0x32) succeeded++;
    line.received = undefined;
    line.bodyEnd = 0;
    histogram.record(Math.max(1, Math.round((performance.now() - line.dueAt) * 1000)));
    line.dueAt = undefined;
    proceed(line);
  }

  /** A line that was answered asks again, or takes what is due. */
  function proceed(line) {
    const next =
      rate === undefined ? (isOver() || !isItsTurn() ? undefined : performance.now()) : due.shift();
    if (next !== undefined) return send(line, next);
    free.push(line);
    finish();
  }

  function finish() {
    if (!isOver() || due.length > 0 || answered + errors < asked) return;
    for (const line of free) line.socket.destroy();
    end({
      answered,
      succeeded,
      errors,
      seconds: (performance.now() - begunAt) / 1000,
      p50Us: histogram.percentile(50),
      p99Us: histogram.percentile(99),
      maxUs: histogram.max,
    });
  }

  const lines = await Promise.all(Array.from({ length: connections }, connect));
  return { begin, goOn };

  /** Lines that are free ask, where they may. */
  function goOn() {
    for (const line of free.splice(0)) proceed(line);
  }

  function begin() {
    begunAt = performance.now();
    answeredAt = begunAt;
    giveUpInTheEnd();
    free.push(...lines);
    if (rate === undefined) {
      goOn();
      if (isAwake) stayAwake();
    } else {
      nextAt = begunAt;
      pace();
    }
    return done;
  }

  function giveUpInTheEnd() {
    const looking = setInterval(() => {
      const since = amount === undefined ? Math.max(endsAt, answeredAt) : answeredAt;
      if (performance.now() - since < GRACE_MS) return;
      clearInterval(looking);
      isGivenUp = true;
      errors += asked - answered - errors;
      due.length = 0;
      finish();
    }, LOOK_EVERY_MS);
  }

  function stayAwake() {
    if (!isOver()) setImmediate(stayAwake);
  }

  /** Whether another request falls due, now or later. */
  function isMore() {
    return amount === undefined ? nextAt < endsAt : asked + due.length < amount;
  }

  function pace() {
    const now = performance.now();
    while (nextAt <= now && isMore()) {
      const line = free.pop();
      if (line === undefined) due.push(nextAt);
      else send(line, nextAt);
      nextAt += (-Math.log(1 - Math.random()) / rate) * 1000;
    }
    if (isMore()) {
      // A timer is late by a millisecond: only a long pause is worth one, or the core that waiting for it would take.
      if (isCoarse) setTimeout(pace, 1);
      else if (nextAt - now > 5) setTimeout(pace, nextAt - now - 2);
      else setImmediate(pace);
    } else if (isOver()) finish();
    else if (amount === undefined) setTimeout(pace, endsAt - now);
  }
}
