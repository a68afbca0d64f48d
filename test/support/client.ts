import { Agent, request } from 'node:https';

/** A response as tests look at it. */
export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** Parsed where the content type says JSON, else the text. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into bodies of every shape, and assert what they find
  readonly body: any;
  readonly text: string;
}

export interface SendOptions {
  /** The service key, sent as Bearer; `null` sends none. Default: the client's own. */
  readonly as?: string | null;
  readonly headers?: Readonly<Record<string, string>>;
  /** An object is sent as JSON, a string as it is. */
  readonly body?: unknown;
}

export interface Client {
  send(method: string, path: string, options?: SendOptions): Promise<Answer>;
  get(path: string, options?: SendOptions): Promise<Answer>;
  post(path: string, body?: unknown, options?: SendOptions): Promise<Answer>;
  put(path: string, body?: unknown, options?: SendOptions): Promise<Answer>;
  patch(path: string, body?: unknown, options?: SendOptions): Promise<Answer>;
  delete(path: string, body?: unknown, options?: SendOptions): Promise<Answer>;
  /** Creates a key in `ws_acme` unless told otherwise; fails the test if it cannot. */
  createKey(
    settings?: Record<string, unknown>,
    options?: SendOptions,
  ): Promise<{ id: string; token: string; data: Answer['body'] }>;
  /** Creates a service key with these permissions; answers its token. */
  createServiceKey(
    permissions: readonly string[],
    settings?: Record<string, unknown>,
  ): Promise<{ id: string; token: string }>;
  introspect(token: string, question?: Record<string, unknown>, options?: SendOptions): Promise<Answer>;
}

type Transport = (request: {
  method: string;
  path: string;
  headers: Record<string, string>;
  body: string | undefined;
}) => Promise<Answer>;

/** The one client of all tests, over `app.inject` or over a socket. Every answer passes `check`. */
export function createClient(
  transport: Transport,
  { token, check }: { token: string; check(method: string, path: string, answer: Answer): void },
): Client {
  const send: Client['send'] = async (method, path, { as = token, headers = {}, body } = {}) => {
    const all: Record<string, string> = { ...headers };
    if (as !== null) all.authorization ??= `Bearer ${as}`;
    const text = body === undefined || typeof body === 'string' ? body : JSON.stringify(body);
    if (text !== undefined) all['content-type'] ??= 'application/json';
    const answer = await transport({ method, path, headers: all, body: text });
    check(method, path, answer);
    return answer;
  };
  const client: Client = {
    send,
    get: (path, options) => send('GET', path, options),
    post: (path, body, options) => send('POST', path, { ...options, body }),
    put: (path, body, options) => send('PUT', path, { ...options, body }),
    patch: (path, body, options) => send('PATCH', path, { ...options, body }),
    delete: (path, body, options) => send('DELETE', path, { ...options, body }),
    async createKey(settings = {}, options) {
      const answer = await client.post(
        '/v1/api-keys',
        { workspace_id: 'ws_acme', name: 'Test key', ...settings },
        options,
      );
      if (answer.status !== 201) throw new Error(`the key was not created: ${answer.text}`);
      return { id: answer.body.data.id, token: answer.body.data.key, data: answer.body.data };
    },
    createServiceKey: (permissions, settings = {}) =>
      client.createKey({
        workspace_id: 'system',
        name: 'Test service key',
        scopes: permissions,
        ...settings,
      }),
    introspect: (key, question = {}, options) => client.post('/v1/introspect', { key, ...question }, options),
  };
  return client;
}

/** Reads a body as its content type says. */
export function bodyOf(contentType: string | undefined, text: string): unknown {
  return /^application\/([a-z]+\+)?json\b/.test(contentType ?? '') ? JSON.parse(text) : text;
}

/** Over TLS, trusting this authority alone. */
export function tlsTransport(baseUrl: string, ca: string): Transport {
  const agent = new Agent({ ca, keepAlive: false });
  return ({ method, path, headers, body }) =>
    new Promise((resolve, reject) => {
      const sent = request(`${baseUrl}${path}`, { method, headers, agent }, async (response) => {
        const text = (await response.setEncoding('utf8').toArray()).join('');
        const found = Object.fromEntries(
          Object.entries(response.headers).map(([name, value]) => [name, String(value)]),
        );
        resolve({
          status: response.statusCode ?? 0,
          headers: found,
          text,
          body: bodyOf(found['content-type'], text),
        });
      });
      sent.on('error', reject).end(body);
    });
}

/** Over a real socket. */
export function fetchTransport(baseUrl: string): Transport {
  return async ({ method, path, headers, body }) => {
    const response = await fetch(`${baseUrl}${path}`, {
      method,
      headers,
      ...(body === undefined ? {} : { body }),
    });
    const text = await response.text();
    const found = Object.fromEntries(response.headers);
    return { status: response.status, headers: found, text, body: bodyOf(found['content-type'], text) };
  };
}
