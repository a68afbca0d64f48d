// The load, in a process of its own: argv names a file with the options of one run as JSON, standard output gets its
// result. Each stream is either closed (every connection asks again as soon as it is answered) or open (`rate` requests
// a second at random moments, whatever the answers do). An open stream counts a latency from the moment at which its
// request was due, also when no connection was free for it: what a slow answer keeps waiting is not left out. With
// `turnMs` the streams, closed ones, take turns of so long: whatever else the machine does meets all of them alike. A
// stream with `lead`, an open one, sends the body that this names until it is time, and counts what comes thereafter:
// a program that begins is slow, and whoever begins with a thousand requests due measures that for as long as they queue.
import { readdirSync, readFileSync } from 'node:fs';
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

const begins = await Promise.all(streams.map(prepareStream));
await sleep(SETTLE_MS);
const results = turnMs === undefined ? await besideEachOther() : await inTurns();
const { user, system } = process.cpuUsage();
process.stdout.write(JSON.stringify({ streams: results, cpuMs: (user + system) / 1000 }));
process.exit();

function besideEachOther() {
  const endsAt = performance.now() + seconds * 1000;
  return Promise.all(begins.map((begin) => begin(endsAt)));
}

async function inTurns() {
  const results = [];
  for (let turn = 0; turn < (seconds * 1000) / turnMs; turn++) {
    for (const [index, begin] of begins.entries()) results[index] = await begin(performance.now() + turnMs);
  }
  return results;
}

/** Of all threads, by the scheduler, which counts nanoseconds where proc(5)'s `stat` counts hundredths of a second. */
function cpuUsOf(pid) {
  const tasks = `/proc/${pid}/task`;
  const nanoseconds = readdirSync(tasks).map((task) =>
    Number(readFileSync(`${tasks}/${task}/schedstat`, 'utf8').split(' ', 1)[0]),
  );
  return nanoseconds.reduce((sum, one) => sum + one, 0) / 1000;
}

/** Connects; answers what begins the stream, once or for each of its turns, and resolves to its result so far. */
async function prepareStream({
  url,
  headers = {},
  bodiesFile,
  connections = 20,
  rate,
  amount,
  inTurn = false,
  isCoarse = false,
  isAwake = false,
  lead,
  pid,
}) {
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

  let isRunning = false;
  let looking;
  let begunAt = 0;
  let cpuBeforeUs = 0;
  let serverCpuUs = 0;
  let nextAt = 0;
  let answeredAt = 0;
  let isGivenUp = false;
  let endsAt = 0;
  let sent = bodies;
  let most = amount;
  const isOver = () => isGivenUp || (most === undefined ? performance.now() >= endsAt : asked >= most);

  function requestText() {
    if (sent === undefined) {
      asked++;
      return `${head}\r\n\r\n`;
    }
    const body = sent[inTurn ? asked % sent.length : Math.floor(Math.random() * sent.length)];
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
    const next = rate === undefined ? (isOver() ? undefined : performance.now()) : due.shift();
    if (next !== undefined) return send(line, next);
    free.push(line);
    finish();
  }

  function finish() {
    if (!isRunning || !isOver() || due.length > 0 || answered + errors < asked) return;
    isRunning = false;
    clearInterval(looking);
    if (pid !== undefined) serverCpuUs += cpuUsOf(pid) - cpuBeforeUs;
    end({
      answered,
      succeeded,
      errors,
      seconds: (performance.now() - begunAt) / 1000,
      p50Us: histogram.percentile(50),
      p99Us: histogram.percentile(99),
      maxUs: histogram.max,
      serverCpuUs,
    });
  }

  free.push(...(await Promise.all(Array.from({ length: connections }, connect))));
  return lead === undefined ? begin : beginWithLead;

  async function beginWithLead(until) {
    sent = [lead.body];
    most = undefined;
    await begin(lead.untilMs - performance.timeOrigin);
    if (succeeded < asked) throw new Error(`of the lead's ${asked} requests ${succeeded} succeeded`);
    sent = bodies;
    most = amount;
    asked = answered = succeeded = serverCpuUs = 0;
    histogram.reset();
    return begin(until);
  }

  function begin(until) {
    endsAt = until;
    begunAt = performance.now();
    answeredAt = begunAt;
    if (pid !== undefined) cpuBeforeUs = cpuUsOf(pid);
    isRunning = true;
    giveUpInTheEnd();
    const done = new Promise((resolve) => {
      end = resolve;
    });
    if (rate === undefined) {
      for (const line of free.splice(0)) proceed(line);
      if (isAwake) stayAwake();
    } else {
      nextAt = begunAt;
      pace();
    }
    return done;
  }

  function giveUpInTheEnd() {
    looking = setInterval(() => {
      const since = most === undefined ? Math.max(endsAt, answeredAt) : answeredAt;
      if (performance.now() - since < GRACE_MS) return;
      isGivenUp = true;
      errors += asked - answered - errors;
      due.length = 0;
      finish();
    }, LOOK_EVERY_MS);
  }

  function stayAwake() {
    if (isRunning) setImmediate(stayAwake);
  }

  /** Whether another request falls due, now or later. */
  function isMore() {
    return most === undefined ? nextAt < endsAt : asked + due.length < most;
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
    else if (most === undefined) setTimeout(pace, endsAt - now);
  }
}
