import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Ajv2019 } from 'ajv/dist/2019.js';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { SETTINGS } from '../../src/config.ts';
import { ROOT } from '../support/service.ts';

const text = await readFile(join(ROOT, 'docker-compose.yml'), 'utf8');
const compose = parse(text);
const { claviger, postgres } = compose.services;

/** The draft calls `$id` what this old schema calls `id`, and it has no need of either. */
function withoutIds(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutIds);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([name, member]) => !((name === 'id' || name === '$schema') && typeof member === 'string'))
      .map(([name, member]) => [name, withoutIds(member)]),
  );
}

describe('docker-compose.yml', async () => {
  const schema = JSON.parse(await readFile(new URL('./compose-spec/schema.json', import.meta.url), 'utf8'));
  const validate = new Ajv2019({ strict: false, logger: false }).compile(withoutIds(schema) as object);

  test('is a Compose file by the schema of the specification', () => {
    // The specification has the top-level name since after this schema was published.
    const { name, ...rest } = compose;
    expect(name).toBe('claviger');
    validate(rest);
    expect(validate.errors).toBeNull();
  });

  test('would be refused with a member that the specification does not know', () => {
    expect(validate({ services: { claviger: { ...claviger, healthchek: {} } } })).toBe(false);
  });

  test('names the command that makes each secret when it is unset, and holds none itself', () => {
    expect(claviger.environment.KEY_SECRET).toMatch(/^\$\{KEY_SECRET:\?.*openssl rand -base64 33\}$/);
    expect(postgres.environment.POSTGRES_PASSWORD).toMatch(
      /^\$\{POSTGRES_PASSWORD:\?.*openssl rand -hex 24\}$/,
    );
    const password = postgres.environment.POSTGRES_PASSWORD;
    expect(claviger.environment.DATABASE_URL).toBe(`postgres://claviger:${password}@postgres:5432/claviger`);
  });

  test('starts the service when PostgreSQL is healthy over TCP', () => {
    expect(claviger.depends_on).toEqual({ postgres: { condition: 'service_healthy' } });
    expect(postgres.healthcheck.test).toEqual([
      'CMD',
      'pg_isready',
      '--host=127.0.0.1',
      '--username=claviger',
      '--dbname=claviger',
    ]);
  });

  test("keeps PostgreSQL's data in a named volume where version 18 expects it", () => {
    expect(postgres.image).toBe('postgres:18');
    expect(postgres.volumes).toEqual(['postgres:/var/lib/postgresql']);
    expect(compose.volumes).toHaveProperty('postgres');
  });

  test('publishes the service on this machine alone, and PostgreSQL not at all', () => {
    expect(claviger.ports).toEqual([`127.0.0.1:\${PORT:-${SETTINGS.PORT.default}}:8080`]);
    expect(claviger.environment).toMatchObject({ HOST: '0.0.0.0', PORT: '8080' });
    expect(postgres).not.toHaveProperty('ports');
  });

  test('gives the service the settings of .env, time to drain, and the health check of its image', () => {
    expect(claviger.env_file).toBe('.env');
    expect(claviger.stop_grace_period).toBe('15s');
    expect(claviger).not.toHaveProperty('healthcheck');
    expect(Object.keys(claviger.environment).every((name) => name in SETTINGS)).toBe(true);
  });
});
