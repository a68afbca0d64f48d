import { spawnSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { Ajv2020 } from 'ajv/dist/2020.js';
import formats from 'ajv-formats';
import { beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { encodeBase62 } from '../../src/domain/base62.ts';
import { EXAMPLE_TOKEN } from '../../src/http/examples.ts';
import { readDocument, writeDocument } from '../../src/openapi.ts';
import { appOfTest } from '../support/app.ts';
import { ROOT, runCli } from '../support/service.ts';

// biome-ignore lint/suspicious/noExplicitAny: a test walks through a document of every shape
type Node = any;

interface Operation {
  readonly name: string;
  readonly path: string;
  readonly method: string;
  readonly object: Node;
}

let document: Node;
let operations: Operation[];

beforeAll(async () => {
  document = await readDocument();
  operations = Object.entries<Node>(document.paths).flatMap(([path, methods]) =>
    Object.entries<Node>(methods).map(([method, object]) => ({
      name: `${method.toUpperCase()} ${path}`,
      path,
      method,
      object,
    })),
  );
});

describe('openapi.yaml', () => {
  test('is what the routes say; if this fails, run `npm run openapi`', async () => {
    expect(await readFile(join(ROOT, 'openapi.yaml'), 'utf8')).toBe(await writeDocument());
  });

  test('is what `claviger openapi` prints, with no setting and no database', async () => {
    const { code, stdout, stderr } = await runCli(['openapi'], {});
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toBe(await writeDocument());
  });

  test('says the same as /openapi.json of a running service', async () => {
    const app = await appOfTest();
    const { status, headers, body } = await app.get('/openapi.json', { as: null });
    expect(status).toBe(200);
    expect(headers['content-type']).toBe('application/json; charset=utf-8');
    expect(body).toEqual(parse(await writeDocument()));
  });

  test('passes the recommended rules of Redocly without an error or a warning', () => {
    const redocly = join(
      dirname(createRequire(import.meta.url).resolve('@redocly/cli/package.json')),
      'bin/cli.js',
    );
    const { stdout, status } = spawnSync(process.execPath, [redocly, 'lint', '--format=json'], {
      cwd: ROOT,
      encoding: 'utf8',
      env: { PATH: process.env.PATH, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' },
    });
    const { totals, problems } = JSON.parse(stdout);
    expect(problems).toEqual([]);
    expect(totals).toEqual({ errors: 0, warnings: 0, ignored: 0 });
    expect(status).toBe(0);
  });
});

describe('the document', () => {
  test('names no schema of zod and has no alias of YAML', async () => {
    const text = await writeDocument();
    expect(text).not.toMatch(/__schema|\$defs|\$schema|documentedAs|Default Response/);
    expect(text).not.toMatch(/: [&*][a-z0-9]+$/m);
  });

  test('names what clients have types for', () => {
    expect(Object.keys(document.components.schemas)).toEqual(
      expect.arrayContaining(['Key', 'KeyWithToken', 'NewKey', 'KeyPatch', 'Problem', 'Restrictions']),
    );
  });

  test('describes every parameter, body, member, response and tag', () => {
    const bare = operations.flatMap(({ name, object }) => [
      ...(object.summary === undefined ? [`${name}: summary`] : []),
      ...(object.parameters ?? []).flatMap((one: Node) => (one.description ? [] : [`${name}: ${one.name}`])),
      ...Object.entries<Node>(object.requestBody?.content ?? {}).flatMap(([type, { schema }]) =>
        undescribed(schema, `${name} ${type}`),
      ),
      ...Object.entries<Node>(object.responses).flatMap(([status, { description, content }]) => [
        ...(description === '' ? [`${name} ${status}`] : []),
        ...Object.values<Node>(content ?? {}).flatMap(({ schema }) =>
          undescribed(schema, `${name} ${status}`),
        ),
      ]),
    ]);
    for (const [name, schema] of Object.entries<Node>(document.components.schemas)) {
      if (schema.description === undefined) bare.push(name);
      bare.push(...undescribed(schema, name));
    }
    expect(bare).toEqual([]);
    const tags = document.tags.map(({ name, description }: Node) => description && name);
    for (const { object } of operations) expect(tags).toEqual(expect.arrayContaining(object.tags));
  });

  test('asks for a service key everywhere but at the probes, and as OAuth does at its endpoints', () => {
    for (const { name, path, object } of operations) {
      if (path.startsWith('/oauth/')) {
        expect(object.security[0], name).toHaveProperty('client');
        expect(Object.keys(object.responses), name).toContain('401');
        continue;
      }
      if (path === '/v1/authorize') {
        // The other headers hold the key of the gateway's client.
        expect(object.security).toEqual([{ gateway: ['introspect'] }]);
        continue;
      }
      if (path.startsWith('/v1/leaks')) {
        // To hold the token, or GitHub's signature, is enough.
        expect(object.security, name).toEqual([]);
        continue;
      }
      const probe = !path.startsWith('/v1/');
      expect(object.security, name).toHaveLength(probe ? 0 : 2);
      expect(Object.keys(object.responses).includes('401'), name).toBe(!probe);
      if (probe || path === '/v1/me') continue;
      const [permission] = object.security[0].bearer;
      expect(object.security, name).toEqual([{ bearer: [permission] }, { apiKey: [permission] }]);
      expect(object.description, name).toContain(`Permission: \`${permission}\`.`);
    }
  });

  test('gives every error as a problem, of OAuth as its own, with the codes that it can have', () => {
    for (const { name, path, object } of operations) {
      for (const [status, { content, headers }] of Object.entries<Node>(object.responses)) {
        expect(headers, name).toHaveProperty('X-Request-Id');
        if (Number(status) < 400) continue;
        if (path.startsWith('/oauth/')) {
          expect(Object.keys(content), name).toEqual(['application/json']);
          const { schema, examples } = content['application/json'];
          expect(schema).toEqual({ $ref: '#/components/schemas/OAuthError' });
          for (const code of new Set(Object.values<Node>(examples).map(({ value }) => value.error)))
            expect(object.responses[status].description, `${name} ${status}`).toContain(`\`${code}\``);
          expect('Retry-After' in headers, `${name} ${status}`).toBe(status === '429' || status === '503');
          continue;
        }
        expect(Object.keys(content), name).toEqual(['application/problem+json']);
        const { schema, examples } = content['application/problem+json'];
        expect(schema).toEqual({ $ref: '#/components/schemas/Problem' });
        expect(Object.keys(examples).length, `${name} ${status}`).toBeGreaterThan(0);
        for (const code of Object.keys(examples)) {
          expect(document.components.examples[code].value.status).toBe(Number(status));
        }
        expect('Retry-After' in headers, `${name} ${status}`).toBe(
          status === '429' || status === '503' || 'idempotency_in_flight' in examples,
        );
      }
    }
  });

  test('tells of Idempotency-Key, its conflicts and its replays where a token is handed out, and nowhere else', () => {
    for (const { name, object } of operations) {
      const names = (object.parameters ?? []).map((parameter: Node) => parameter.name);
      const created = object.responses['201'];
      const takes = created !== undefined;
      expect(names.includes('Idempotency-Key'), name).toBe(takes);
      expect('422' in object.responses, name).toBe(takes);
      expect('Idempotent-Replayed' in (created?.headers ?? {}), name).toBe(takes);
    }
  });

  test('gives every body and every success examples, which its schemas accept', () => {
    const ajv = new Ajv2020({ strict: false });
    formats.default(ajv);
    ajv.addSchema(document, 'openapi');
    const validate = (schema: Node, value: unknown) =>
      ajv.validate(JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"openapi#/')), value);
    for (const { name, object } of operations) {
      const successes = Object.entries<Node>(object.responses).filter(([status]) => status.startsWith('2'));
      for (const content of [object.requestBody?.content, ...successes.map(([, one]) => one.content)]) {
        for (const [type, { schema, examples = {} }] of Object.entries<Node>(content ?? {})) {
          expect(Object.keys(examples).length, `${name} ${type}`).toBeGreaterThan(0);
          for (const { value } of Object.values<Node>(examples)) {
            expect(validate(schema, value), `${name} ${type}: ${ajv.errorsText()}`).toBe(true);
          }
        }
      }
    }
  });

  test('states bounds as keywords of JSON Schema', () => {
    const { NewKey, NewRateLimit, NewRestrictions } = document.components.schemas;
    expect(NewKey).toMatchObject({ required: ['workspace_id', 'name'], additionalProperties: false });
    expect(NewKey.properties.name).toMatchObject({ type: 'string', minLength: 1, maxLength: 120 });
    expect(NewKey.properties.scopes).toMatchObject({ maxItems: 64, items: { maxLength: 64 } });
    expect(NewKey.properties.scopes.items.pattern).toBe('^[a-z0-9][a-z0-9_.-]*(:[a-z0-9_.-]+)*$');
    expect(NewKey.properties.expires_at).toMatchObject({ type: ['string', 'null'], format: 'date-time' });
    expect(NewKey.properties.metadata).toMatchObject({ type: ['object', 'null'] });
    expect(NewRateLimit.properties.limit).toMatchObject({ minimum: 1, maximum: 2_147_483_647 });
    expect(NewRateLimit.properties.window_seconds).toMatchObject({ minimum: 1, maximum: 2_678_400 });
    expect(NewRestrictions.properties.allowed_ips).toMatchObject({ minItems: 1, maxItems: 100 });
    const { parameters } = document.paths['/v1/api-keys'].get;
    expect(parameters.find(({ name }: Node) => name === 'limit')).toMatchObject({
      required: false,
      schema: { type: 'integer', minimum: 1, maximum: 100, default: 20 },
    });
  });

  test('has both media types of introspection and of PATCH, and bodies that may be left out', () => {
    expect(Object.keys(document.paths['/v1/introspect'].post.requestBody.content)).toEqual([
      'application/json',
      'application/x-www-form-urlencoded',
    ]);
    const { delete: remove, patch } = document.paths['/v1/api-keys/{id}'];
    expect(Object.keys(patch.requestBody.content)).toEqual([
      'application/json',
      'application/merge-patch+json',
    ]);
    expect(patch.requestBody.required).toBe(true);
    expect(remove.requestBody.required).toBe(false);
  });

  test('shows a token that no deployment can have minted: its checksum is wrong', () => {
    expect(EXAMPLE_TOKEN).toMatch(/^ck_live_[0-9A-Za-z]{66}$/);
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(crc32(EXAMPLE_TOKEN.slice(0, -6)));
    expect(EXAMPLE_TOKEN.slice(-6)).not.toBe(encodeBase62(bytes, 6));
  });
});

/** The members below a schema that neither say what they are nor refer to something that does. */
function undescribed(schema: Node, path: string): string[] {
  const bare: string[] = [];
  for (const [name, member] of Object.entries<Node>(schema.properties ?? {})) {
    const refers = '$ref' in member || member.allOf !== undefined;
    if (member.description === undefined && !refers) bare.push(`${path}.${name}`);
    bare.push(...undescribed(member, `${path}.${name}`));
  }
  const inner = [schema.items, ...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.allOf ?? [])];
  for (const one of inner) if (typeof one === 'object') bare.push(...undescribed(one, path));
  return bare;
}
