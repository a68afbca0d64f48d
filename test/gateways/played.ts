import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import {
  createServer,
  request as httpRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { parse } from 'yaml';
import { z } from 'zod';
import { type Around, type Gateway, RECIPES, type Recipe } from './gateway.ts';

/*
 * Traefik and Envoy are no Debian packages. Here their parts are played after their documentation and source: what they
 * ask for a request, byte for byte, and what they do with the answer, each as its recipe in examples/gateways/ says.
 */

type Headers = Map<string, string[]>;

/** A client's request as the gateway passes it on: names in lower case. */
interface Arrived {
  readonly method: string;
  readonly url: string;
  readonly headers: Headers;
  readonly client: string;
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

interface Part {
  /** What the gateway makes of a request before anything else; `undefined`: it refuses it. */
  arrive(arrived: Arrived): Arrived | undefined;
  /** The request to Claviger, in full. */
  question(arrived: Arrived): { method: string; path: string; headers: Headers };
  readonly timeoutMs: number;
  readonly statusOnError: number;
  isAllowed(status: number): boolean;
  /** The headers of the request to the service. */
  onward(arrived: Arrived, answer: Answer): Headers;
  /** What of Claviger's headers a client is shown that was let in, or that was not. */
  shown(answer: Answer, isAllowed: boolean): IncomingHttpHeaders;
}

const recipeOf = async (...path: string[]) => parse(await readFile(join(RECIPES, ...path), 'utf8'));
const matching = (headers: IncomingHttpHeaders, isWanted: (name: string) => boolean) =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => isWanted(name)));

const traefikRecipe = z.object({
  http: z.object({
    routers: z.object({
      service: z.object({ middlewares: z.tuple([z.literal('claviger'), z.literal('without-key')]) }),
    }),
    middlewares: z.object({
      claviger: z.object({
        forwardAuth: z.strictObject({
          address: z.url(),
          trustForwardHeader: z.literal(false),
          authRequestHeaders: z.array(z.string()),
          authResponseHeadersRegex: z.string(),
        }),
      }),
      'without-key': z.object({
        headers: z.strictObject({ customRequestHeaders: z.record(z.string(), z.literal('')) }),
      }),
    }),
  }),
});

/** Traefik 3 (pkg/middlewares/auth/forward.go, pkg/middlewares/forwardedheaders). */
export const traefik: Recipe = {
  name: 'Traefik',
  settings: { AUTHORIZE_SOURCE: 'forwarded', AUTHORIZE_TRUSTED_CIDRS: '127.0.0.1' },
  // It answers this by itself and can be told nothing else.
  statusWithoutClaviger: 500,
  passesProblems: true,
  tellsLimits: false,
  async start(around) {
    const { middlewares } = traefikRecipe.parse(await recipeOf('traefik', 'dynamic.yaml')).http;
    const { address, authRequestHeaders, authResponseHeadersRegex } = middlewares.claviger.forwardAuth;
    const removed = Object.keys(middlewares['without-key'].headers.customRequestHeaders);
    const asked = new URL(address);
    for (const [name, value] of Object.entries(around.options ?? {})) asked.searchParams.set(name, value);
    // Go's flag for either case is JavaScript's.
    const isIdentity = new RegExp(authResponseHeadersRegex.replace('(?i)', ''), 'i');
    return play(around, {
      arrive(arrived) {
        const headers = new Map(arrived.headers);
        for (const name of headers.keys()) {
          if (/^x-forwarded-|^x-real-ip$/.test(name)) headers.delete(name);
        }
        return { ...arrived, headers };
      },
      question: ({ method, url, headers, client }) => ({
        method: 'GET',
        path: asked.pathname + asked.search,
        headers: new Map([
          ['Host', [asked.host]],
          ['User-Agent', ['Go-http-client/1.1']],
          ...authRequestHeaders.flatMap((name): [string, string[]][] => {
            const values = headers.get(name.toLowerCase());
            return values === undefined ? [] : [[name, values]];
          }),
          ['X-Forwarded-For', [client]],
          ['X-Forwarded-Method', [method]],
          ['X-Forwarded-Proto', ['http']],
          ['X-Forwarded-Host', headers.get('host') ?? []],
          ['X-Forwarded-Uri', [url]],
          ['Accept-Encoding', ['gzip']],
        ]),
      }),
      // 30 s, and not to be set; a test has no time for that.
      timeoutMs: 1_000,
      statusOnError: 500,
      isAllowed: (status) => status >= 200 && status < 300,
      onward({ headers, client }, answer) {
        const onward = new Map(headers);
        for (const name of onward.keys()) if (isIdentity.test(name)) onward.delete(name);
        for (const [name, value] of Object.entries(
          matching(answer.headers, (name) => isIdentity.test(name)),
        )) {
          onward.set(name, [String(value)]);
        }
        for (const name of removed) onward.delete(name.toLowerCase());
        return onward.set('x-forwarded-for', [client]).set('x-real-ip', [client]);
      },
      shown: (answer, isAllowed) =>
        isAllowed ? {} : matching(answer.headers, (name) => name !== 'connection'),
    });
  },
};

const patterns = z.object({
  patterns: z.array(
    z.union([
      z.strictObject({ exact: z.string(), ignore_case: z.literal(true) }),
      z.strictObject({ prefix: z.string(), ignore_case: z.literal(true) }),
    ]),
  ),
});
type Patterns = z.infer<typeof patterns>;

const matches = ({ patterns }: Patterns, name: string) =>
  patterns.some((pattern) => ('exact' in pattern ? pattern.exact === name : name.startsWith(pattern.prefix)));

const externalAuthorization = z.object({
  failure_mode_allow: z.literal(false),
  status_on_error: z.object({ code: z.literal('ServiceUnavailable') }),
  allowed_headers: patterns,
  http_service: z.object({
    server_uri: z.object({ timeout: z.string().regex(/^[\d.]+s$/) }),
    path_prefix: z.string(),
    authorization_request: z.object({
      headers_to_add: z.array(z.object({ key: z.string(), value: z.string() })),
    }),
    authorization_response: z.object({
      allowed_upstream_headers: patterns,
      allowed_client_headers: patterns,
      allowed_client_headers_on_success: patterns,
    }),
  }),
});

const connectionManager = z.object({
  use_remote_address: z.literal(true),
  path_with_escaped_slashes_action: z.literal('REJECT_REQUEST'),
  common_http_protocol_options: z.object({ headers_with_underscores_action: z.literal('DROP_HEADER') }),
  route_config: z.object({ request_headers_to_remove: z.array(z.string()) }),
});

/** Envoy 1.30 and later (source/extensions/filters/common/ext_authz/ext_authz_http_impl.cc). */
export const envoy: Recipe = {
  name: 'Envoy',
  settings: { AUTHORIZE_SOURCE: 'path' },
  statusWithoutClaviger: 503,
  passesProblems: true,
  tellsLimits: true,
  async start(around) {
    const recipe = await recipeOf('envoy', 'envoy.yaml');
    const manager = recipe.static_resources.listeners[0].filter_chains[0].filters[0].typed_config;
    const { request_headers_to_remove: removed } = connectionManager.parse(manager).route_config;
    const { allowed_headers, http_service } = externalAuthorization.parse(
      manager.http_filters[0].typed_config,
    );
    const { authorization_request, authorization_response, path_prefix, server_uri } = http_service;
    const { scope, workspace_id, environment } = around.options ?? {};
    const added = new Map(authorization_request.headers_to_add.map(({ key, value }) => [key, [value]]));
    added.set('x-claviger-service-key', [around.serviceKey]);
    if (scope !== undefined) added.set('x-claviger-scope', [scope]);
    if (workspace_id !== undefined) added.set('x-claviger-workspace', [workspace_id]);
    if (environment !== undefined) added.set('x-claviger-environment-expected', [environment]);
    return play(around, {
      arrive(arrived) {
        if (/%2f|%5c/i.test(arrived.url)) return undefined;
        const headers = new Map([...arrived.headers].filter(([name]) => !name.includes('_')));
        const before = headers.get('x-forwarded-for') ?? [];
        return {
          ...arrived,
          headers: headers.set('x-forwarded-for', [[...before, arrived.client].join(',')]),
        };
      },
      question({ method, url, headers }) {
        const asked: Headers = new Map([['host', headers.get('host') ?? []]]);
        for (const [name, values] of headers) {
          if (name === 'authorization' || matches(allowed_headers, name)) asked.set(name, values);
        }
        for (const [name, values] of added) asked.set(name, values);
        return { method, path: path_prefix + url, headers: asked.set('content-length', ['0']) };
      },
      timeoutMs: Number.parseFloat(server_uri.timeout) * 1_000,
      statusOnError: 503,
      isAllowed: (status) => status === 200,
      onward({ headers }, answer) {
        const onward = new Map(headers);
        for (const [name, value] of Object.entries(answer.headers)) {
          if (matches(authorization_response.allowed_upstream_headers, name))
            onward.set(name, [String(value)]);
        }
        for (const name of removed) onward.delete(name);
        return onward;
      },
      shown: (answer, isAllowed) =>
        matching(answer.headers, (name) =>
          matches(
            isAllowed
              ? authorization_response.allowed_client_headers_on_success
              : authorization_response.allowed_client_headers,
            name,
          ),
        ),
    });
  },
};

/** A proxy that plays the part. */
async function play({ claviger, service }: Around, part: Part): Promise<Gateway> {
  const sockets = new Set<Socket>();

  /** Decides on a request; answers it itself where it may not pass. */
  async function admit(
    request: IncomingMessage,
    refuse: (status: number, headers: IncomingHttpHeaders, body: Buffer) => void,
  ): Promise<{ arrived: Arrived; onward: Headers; shown: IncomingHttpHeaders } | undefined> {
    const arrived = part.arrive({
      method: request.method ?? '',
      url: request.url ?? '',
      headers: gathered(request.rawHeaders),
      client: request.socket.remoteAddress ?? '',
    });
    if (arrived === undefined) return void refuse(400, {}, Buffer.alloc(0));
    let answer: Answer;
    try {
      answer = await ask(claviger, part.question(arrived), part.timeoutMs);
    } catch {
      return void refuse(part.statusOnError, {}, Buffer.alloc(0));
    }
    const isAllowed = part.isAllowed(answer.status);
    const shown = part.shown(answer, isAllowed);
    if (!isAllowed) return void refuse(answer.status, shown, answer.body);
    return { arrived, onward: part.onward(arrived, answer), shown };
  }

  async function pass(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const admitted = await admit(request, (status, headers, body) => {
      request.resume();
      response.writeHead(status, headers).end(body);
    });
    if (admitted === undefined) return;
    const onward = toService(service, admitted);
    onward.on('response', (answer) => {
      response.writeHead(answer.statusCode ?? 0, { ...answer.headers, ...admitted.shown });
      answer.pipe(response);
    });
    request.pipe(onward);
  }

  async function upgrade(request: IncomingMessage, socket: Duplex): Promise<void> {
    const admitted = await admit(request, (status) => {
      socket.end(`HTTP/1.1 ${status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
    });
    if (admitted === undefined) return;
    const onward = toService(service, admitted);
    onward.on('upgrade', ({ rawHeaders }, behind) => {
      const lines = rawHeaders.map((text, index) => (index % 2 === 0 ? `${text}: ` : `${text}\r\n`));
      socket.write(`HTTP/1.1 101 Switching Protocols\r\n${lines.join('')}\r\n`);
      behind.on('error', () => socket.destroy());
      socket.on('error', () => behind.destroy());
      socket.pipe(behind).pipe(socket);
    });
    onward.end();
  }

  const server = createServer((request, response) => void pass(request, response));
  server.on('upgrade', (request, socket) => void upgrade(request, socket));
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    log: () => '',
    async stop() {
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, 'close');
    },
  };
}

async function ask(
  port: number,
  { method, path, headers }: { method: string; path: string; headers: Headers },
  timeoutMs: number,
): Promise<Answer> {
  const signal = AbortSignal.timeout(timeoutMs);
  const request = httpRequest({ host: '127.0.0.1', port, method, path, headers: flat(headers), signal });
  request.end();
  const [response] = (await once(request, 'response')) as [IncomingMessage];
  const body = Buffer.concat(await response.toArray());
  return { status: response.statusCode ?? 0, headers: response.headers, body };
}

function toService(port: number, { arrived, onward }: { arrived: Arrived; onward: Headers }) {
  const { method, url: path } = arrived;
  const request = httpRequest({ host: '127.0.0.1', port, method, path, headers: flat(onward) });
  request.on('error', () => request.destroy());
  return request;
}

function gathered(rawHeaders: readonly string[]): Headers {
  const headers: Headers = new Map();
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index]?.toLowerCase() ?? '';
    headers.set(name, [...(headers.get(name) ?? []), rawHeaders[index + 1] ?? '']);
  }
  return headers;
}

/** Names and values in turn, as they are to be written. */
function flat(headers: Headers): string[] {
  return [...headers].flatMap(([name, values]) => values.flatMap((value) => [name, value]));
}
