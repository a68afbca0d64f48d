import http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { onTestFinished } from 'vitest';
import { type LoadRequest, sendOnce } from '../process/load.ts';
import type { Service } from './service.ts';

/*
 * A deployment under load, as an orchestrator carries it out: a load balancer sends requests to the instances whose
 * `/readyz` says 200, while instances come and go. Clients live through whole lives of keys meanwhile, each request
 * at another instance, and hold every answer to what was promised.
 */

const PROBE_EVERY_MS = 100;
/** Of each story. */
const WORKSPACE = 'ws_rollout';

export interface Rollout {
  /** Sends requests to it from its first 200 of `/readyz` on, and resolves then. */
  add(service: Service): Promise<void>;
  /** Ends an instance as an orchestrator does, and resolves with its exit code. */
  end(service: Service): Promise<unknown>;
  /** Resolves once so many more lives of keys are over. */
  lives(count: number): Promise<void>;
  /** Ends the load; answers whatever was not as promised (the load ends with the first of it), and the tokens of keys that live on. */
  stop(): Promise<{ faults: readonly string[]; requests: number; tokens: readonly string[] }>;
}

interface Target {
  readonly service: Service;
  ready: boolean;
  gone: boolean;
}

/**
 * Within a test, with whose end it ends.
 *
 * @param token a service key with `admin`.
 */
export function startRollout({ token, clients }: { token: string; clients: number }): Rollout {
  const targets = new Set<Target>();
  const faults: string[] = [];
  const tokens: string[] = [];
  let requests = 0;
  let lives = 0;
  let turn = 0;
  let stopping = false;
  let over = false;
  const probes: Promise<void>[] = [];

  const ready = () => [...targets].filter((target) => target.ready);

  async function probe(target: Target): Promise<void> {
    while (!target.gone && !over) {
      const outcome = await sendOnce(target.service.url, 'none', { method: 'GET', path: '/readyz' });
      target.ready = outcome.answered && outcome.status === 200;
      await sleep(PROBE_EVERY_MS);
    }
    target.ready = false;
  }

  async function until(condition: () => boolean): Promise<void> {
    while (!condition() && !stopping) await sleep(20);
  }

  /** One client: its own connections, one to each instance. */
  async function runClient(number: number): Promise<void> {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    async function ask(target: Target | undefined, request: LoadRequest, status: number) {
      if (target === undefined) throw new Error('no instance is ready');
      requests++;
      const outcome = await sendOnce(target.service.url, token, request, agent);
      const told = outcome.answered ? `${outcome.status} ${outcome.text}` : outcome.code;
      if (!outcome.answered || outcome.status !== status)
        throw new Error(`${request.method} ${request.path} at ${target.service.url}: ${told}`);
      return JSON.parse(outcome.text);
    }
    const askAny = (request: LoadRequest, status: number) => {
      const choice = ready();
      return ask(choice[turn++ % choice.length], request, status);
    };
    /** At every instance: what was promised holds wherever one asks. */
    async function expectVerdict(key: string, verdict: 'active' | 'revoked'): Promise<void> {
      for (const target of ready()) {
        const answer = await ask(target, { method: 'POST', path: '/v1/introspect', body: { key } }, 200);
        const found = answer.active === true ? 'active' : answer.reason.code;
        if (found !== verdict) throw new Error(`${found} instead of ${verdict} at ${target.service.url}`);
      }
    }

    async function live(name: string): Promise<void> {
      const body = { workspace_id: WORKSPACE, name, rate_limit: null };
      const { data: made } = await askAny({ method: 'POST', path: '/v1/api-keys', body }, 201);
      await expectVerdict(made.key, 'active');
      const path = `/v1/api-keys/${made.id}`;
      await askAny({ method: 'PATCH', path, body: { name: `${name} (changed)` } }, 200);
      const { data: read } = await askAny({ method: 'GET', path }, 200);
      if (read.name !== `${name} (changed)`) throw new Error(`${made.id} is called ${read.name}`);
      await askAny({ method: 'GET', path: `/v1/api-keys?workspace_id=${WORKSPACE}&limit=5` }, 200);
      const rotation = { grace_period_seconds: 0 };
      const { data: next } = await askAny({ method: 'POST', path: `${path}/rotate`, body: rotation }, 201);
      await expectVerdict(made.key, 'revoked');
      await expectVerdict(next.key, 'active');
      if (lives % 4 === 0) {
        tokens.push(next.key);
        return;
      }
      await askAny({ method: 'DELETE', path: `/v1/api-keys/${next.id}` }, 200);
      await expectVerdict(next.key, 'revoked');
    }

    while (!stopping && faults.length === 0) {
      await live(`Life ${lives} of ${number}`).catch((error: Error) => faults.push(error.message));
      lives++;
    }
    agent.destroy();
  }

  const started: Promise<void>[] = [];
  onTestFinished(() => {
    stopping = true;
    over = true;
  });
  return {
    async add(service) {
      const target: Target = { service, ready: false, gone: false };
      targets.add(target);
      probes.push(probe(target));
      await until(() => target.ready);
      if (started.length === 0)
        started.push(...Array.from({ length: clients }, (_, number) => runClient(number)));
    },
    async end(service) {
      const code = await service.end('SIGTERM');
      for (const target of targets) {
        if (target.service !== service) continue;
        target.gone = true;
        targets.delete(target);
      }
      return code;
    },
    async lives(count) {
      const goal = lives + count;
      await until(() => lives >= goal || faults.length > 0);
    },
    async stop() {
      stopping = true;
      // Clients finish the lives that they are at, and need instances for it.
      await Promise.all(started);
      over = true;
      await Promise.all(probes);
      return { faults, requests, tokens };
    },
  };
}
