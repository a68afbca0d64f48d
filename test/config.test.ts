import { describe, expect, test } from 'vitest';
import { ConfigError, readConfig, SETTINGS } from '../src/config.ts';

const SECRET = 'a-secret-of-32-characters-exactl';
const SHORT_SECRET = SECRET.slice(1);
const DATABASE_URL = 'postgres://user:word-of-pass@db.example:5432/claviger';

/** Values on both sides of each boundary. A setting without an entry fails a test below. */
const CASES: Readonly<Record<string, { accepted: readonly string[]; refused: readonly string[] }>> = {
  DATABASE_URL: {
    accepted: [DATABASE_URL, 'postgresql://localhost/claviger'],
    refused: [
      'localhost:5432',
      'mysql://user:word-of-pass@host/db',
      'postgres://ho st/db',
      'postgres://[::1/db',
    ],
  },
  DATABASE_LISTEN_URL: { accepted: [DATABASE_URL], refused: ['host=localhost password=word-of-pass'] },
  DATABASE_POOL_SIZE: { accepted: ['2', '1000'], refused: ['1', '1001', '-3', '2.5', '1e2', ' 10', '0x10'] },
  DATA_DIR: { accepted: ['.data', '/var/lib/claviger'], refused: [] },
  KEY_SECRET: {
    accepted: [SECRET, `${SECRET},${SECRET}x`, ` ${SECRET} , ${SECRET}x `],
    refused: [SHORT_SECRET, `${SECRET},${SHORT_SECRET}`, `${SECRET},${SECRET}`, ' , '],
  },
  LEASE_SECONDS: { accepted: ['1', '300'], refused: ['0', '301'] },
  CACHED_KEYS: { accepted: ['1', '10000000'], refused: ['0', '10000001', '10000000000'] },
  VERIFICATION_MEMO: { accepted: ['on', 'off'], refused: ['ON', 'true', '1'] },
  RECORDING: { accepted: ['on', 'off'], refused: ['ON', 'true', '1'] },
  REQUEST_LOG_SAMPLE: {
    accepted: ['0', '1', '0.05', '1.0'],
    refused: ['1.01', '-0.1', '.5', '1e-3', '50%'],
  },
  REQUEST_LOG_PER_SECOND: { accepted: ['4', '100000'], refused: ['3', '100001', 'off'] },
  REQUEST_LOG_RETENTION_DAYS: { accepted: ['1', '400'], refused: ['0', '401'] },
  USAGE_RETENTION_DAYS: { accepted: ['1', '3650'], refused: ['0', '3651', 'off'] },
  AUDIT_RETENTION_DAYS: { accepted: ['30', '3650', 'off'], refused: ['29', '3651', 'OFF', '1e3'] },
  KEY_PREFIX: {
    accepted: ['c', 'ck', 'a234567890123456'],
    refused: ['C', '1k', 'c_k', 'a2345678901234567', 'ck '],
  },
  KEY_ENVIRONMENTS: {
    accepted: ['live', 'live,test', 'live, staging', Array.from({ length: 16 }, (_, i) => `e${i}`).join()],
    refused: [
      ',',
      'live,live',
      'live,svc',
      'Live',
      Array.from({ length: 17 }, (_, i) => `e${i}`).join(),
      'a2345678901234567',
    ],
  },
  DEFAULT_RATE_LIMIT: {
    accepted: ['1/1', '2147483647/2678400', 'off'],
    refused: ['0/1', '1/0', '2147483648/1', '1/2678401', '1000', '1000/h', 'OFF', '01/1'],
  },
  TEST_DEFAULT_RATE_LIMIT: { accepted: ['1/1', 'off'], refused: ['0/1', '2147483648/1'] },
  ROTATION_DUE_DAYS: { accepted: ['1', '3650'], refused: ['0', '3651'] },
  SIGNAL_UNUSED_DAYS: { accepted: ['1', '3650'], refused: ['0', '3651', 'off'] },
  SIGNAL_EXPIRING_DAYS: { accepted: ['1', '365'], refused: ['0', '366'] },
  SIGNAL_GROWTH_FACTOR: { accepted: ['2', '1000000'], refused: ['1', '1000001', '2.5'] },
  SIGNAL_GROWTH_MINIMUM: { accepted: ['1', '1000000000'], refused: ['0', '1000000001'] },
  SIGNAL_BURST_FAILURES: { accepted: ['1', '1000000'], refused: ['0', '1000001'] },
  SIGNAL_BURST_MINUTES: { accepted: ['1', '1440'], refused: ['0', '1441'] },
  SIGNAL_RECENT_DAYS: { accepted: ['1', '30'], refused: ['0', '31'] },
  RATE_LIMIT_ON_OUTAGE: { accepted: ['allow', 'refuse'], refused: ['deny', 'Allow'] },
  CATALOGUE_UNMATCHED: { accepted: ['refuse', 'allow'], refused: ['deny', 'ALLOW'] },
  ISSUER: {
    accepted: [
      'https://keys.example.com',
      'http://127.0.0.1:8080',
      'https://example.com/claviger',
      'http://[::1]:8080',
    ],
    refused: [
      'keys.example.org',
      'ftp://keys.example.com',
      'https://keys.example.com/',
      'https://keys.example.com/a/',
      'https://keys.example.com?a=b',
      'https://keys.example.com#a',
      'https://user@keys.example.com',
      'https://Keys.example.com',
      'https://keys.example.com:443',
      'https://keys.example.com/a/../b',
      'https:///',
    ],
  },
  OAUTH_TOKEN_SECONDS: { accepted: ['60', '86400'], refused: ['59', '86401', '1h'] },
  OAUTH_KEY_ROTATION_DAYS: { accepted: ['1', '3650'], refused: ['0', '3651'] },
  CALLER_RATE_LIMIT: { accepted: ['1', '1000000000', 'off'], refused: ['0', '1000000001', '-1'] },
  INTROSPECT_RATE_LIMIT: { accepted: ['1', '1000000000', 'off'], refused: ['0', '1000000001'] },
  FAILED_AUTH_RATE_LIMIT: { accepted: ['1', '1000000000', 'off'], refused: ['0', '1000000001'] },
  GITHUB_KEYS_URL: {
    accepted: [
      'https://api.github.com/meta/public_keys/secret_scanning',
      'http://127.0.0.1:9000/keys',
      'http://[::1]/',
      'http://localhost/keys',
    ],
    refused: [
      'http://api.github.com/meta/public_keys/secret_scanning',
      'http://127.0.0.1.example.com/',
      'http://localhost.example.com/',
      'https://[',
      'api.github.com',
      'on',
    ],
  },
  GITHUB_KEYS_FILE: { accepted: ['/etc/claviger/github.json'], refused: [] },
  TRUSTED_PROXY_CIDRS: {
    accepted: ['10.0.0.0/8', '::1', '10.0.0.0/8, 2001:db8::/32'],
    refused: ['10.0.0.0/33', 'proxy.example', '10.0.0.0/8;::1'],
  },
  AUTHORIZE_TRUSTED_CIDRS: {
    accepted: ['127.0.0.1', '10.0.0.0/8, 2001:db8::/32'],
    refused: ['10.0.0.0/33', 'gateway.example', '*'],
  },
  AUTHORIZE_SOURCE: { accepted: ['forwarded', 'original', 'path'], refused: ['Path', 'nginx'] },
  AUTHORIZE_FORWARDED_FOR_HOPS: { accepted: ['1', '16'], refused: ['0', '17', '-1', '1.5'] },
  ADMIN_KEY_FILE: { accepted: ['/run/secrets/admin-key'], refused: [] },
  ARGON2_MEMORY_KIB: { accepted: ['1024', '4194304'], refused: ['1023', '4194305'] },
  ARGON2_TIME_COST: { accepted: ['1', '1000'], refused: ['0', '1001'] },
  ARGON2_PARALLELISM: { accepted: ['1', '16'], refused: ['0', '17'] },
  TLS_CERT_FILE: { accepted: ['/run/secrets/tls.crt'], refused: [] },
  TLS_KEY_FILE: { accepted: ['/run/secrets/tls.key'], refused: [] },
  METRICS_ENABLED: { accepted: ['on', 'off'], refused: ['yes'] },
  OTEL_EXPORTER_OTLP_ENDPOINT: {
    accepted: ['http://127.0.0.1:4318', 'https://traces.example.com/otlp'],
    refused: ['traces.example.com', 'ftp://traces.example.com', 'grpc://127.0.0.1:4317'],
  },
  OTEL_TRACES_SAMPLER_ARG: { accepted: ['0', '0.25', '1'], refused: ['-0.1', '1.01', 'always'] },
  HOST: { accepted: ['0.0.0.0', '::'], refused: [] },
  PORT: { accepted: ['0', '65535'], refused: ['-1', '65536', 'http'] },
  LOG_LEVEL: { accepted: ['trace', 'silent'], refused: ['verbose', 'INFO'] },
};
const NAMES = Object.keys(SETTINGS);

/** What a setting needs beside it. */
const COMPANIONS: Readonly<Record<string, Record<string, string>>> = {
  DATABASE_URL: { KEY_SECRET: SECRET },
  DATABASE_LISTEN_URL: { DATABASE_URL, KEY_SECRET: SECRET },
  TLS_CERT_FILE: { TLS_KEY_FILE: '/run/secrets/tls.key' },
  TLS_KEY_FILE: { TLS_CERT_FILE: '/run/secrets/tls.crt' },
};

const each = (kind: 'accepted' | 'refused') =>
  Object.entries(CASES).flatMap(([name, values]) => values[kind].map((value) => [name, value] as const));

function faultsOf(environment: Record<string, string>): string[] {
  try {
    readConfig(environment);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return (error as ConfigError).message.split('\n');
  }
  return [];
}

test('each setting has its boundaries tested here', () => {
  expect(Object.keys(CASES).sort()).toEqual([...NAMES].sort());
});

test.each(each('accepted'))('%s may be "%s"', (name, value) => {
  expect(faultsOf({ ...COMPANIONS[name], [name]: value })).toEqual([]);
});

test.each(each('refused'))('%s may not be "%s"', (name, value) => {
  const faults = faultsOf({ ...COMPANIONS[name], [name]: value });
  expect(faults).toEqual([expect.stringMatching(new RegExp(`^${name} must .*`))]);
});

test('each fault is listed, a line each, in one message that repeats no value', () => {
  const values = Object.fromEntries(
    Object.entries(CASES).flatMap(([name, { refused }]) =>
      refused[0] === undefined ? [] : [[name, refused[0]]],
    ),
  );
  const faults = faultsOf(values);
  expect(faults.map((line) => line.split(' ')[0])).toEqual(NAMES.filter((name) => name in values));
  for (const [name, { refused }] of Object.entries(CASES)) {
    for (const value of refused.filter((text) => text.trim().length > 4)) {
      const message = faultsOf({ ...COMPANIONS[name], [name]: value }).join('\n');
      expect(message).not.toContain(value);
    }
  }
  expect(faults.join('\n')).not.toMatch(/word-of-pass|a-secret-of/);
});

describe('an empty variable', () => {
  test.each(NAMES)('%s is unset', (name) => {
    expect(readConfig({ [name]: '' })).toEqual(readConfig({}));
  });

  test('KEY_SECRET beside DATABASE_URL is as missing as none', () => {
    for (const environment of [{ DATABASE_URL }, { DATABASE_URL, KEY_SECRET: '' }]) {
      expect(faultsOf(environment)).toEqual([
        expect.stringMatching(/^KEY_SECRET is required with DATABASE_URL; make one with: openssl/),
      ]);
    }
  });
});

test('a separate connection for LISTEN makes no sense without DATABASE_URL', () => {
  expect(faultsOf({ DATABASE_LISTEN_URL: DATABASE_URL })).toEqual([
    'DATABASE_LISTEN_URL goes with DATABASE_URL, which is unset',
  ]);
});

test.each([
  ['TLS_CERT_FILE', 'TLS_KEY_FILE'],
  ['TLS_KEY_FILE', 'TLS_CERT_FILE'],
])('%s makes no sense without %s', (given, missing) => {
  expect(faultsOf({ [given]: '/run/secrets/tls' })).toEqual([
    `${given} goes with ${missing}, which is unset`,
  ]);
});

test('each default is what the table of settings says', () => {
  const written = Object.fromEntries(
    Object.entries(SETTINGS).flatMap(([name, setting]) =>
      setting.default === '' ? [] : [[name, setting.default]],
    ),
  );
  expect(readConfig({})).toEqual(readConfig(written));
  expect(readConfig({})).toMatchObject({
    DATA_DIR: '.data',
    HOST: '127.0.0.1',
    PORT: 8080,
    LOG_LEVEL: 'info',
    KEY_PREFIX: 'ck',
    KEY_ENVIRONMENTS: ['live', 'test'],
    DEFAULT_RATE_LIMIT: { limit: 1000, window_seconds: 3600 },
    ROTATION_DUE_DAYS: 90,
    CALLER_RATE_LIMIT: 6000,
    INTROSPECT_RATE_LIMIT: null,
    FAILED_AUTH_RATE_LIMIT: 300,
    TRUSTED_PROXY_CIDRS: [],
    AUTHORIZE_TRUSTED_CIDRS: [],
    AUTHORIZE_SOURCE: 'forwarded',
    AUTHORIZE_FORWARDED_FOR_HOPS: 1,
    ARGON2_MEMORY_KIB: 19_456,
    ARGON2_TIME_COST: 2,
    ARGON2_PARALLELISM: 1,
    LEASE_SECONDS: 10,
  });
});

test('variables that are no settings are nobody’s business', () => {
  expect(readConfig({ PATH: '/bin', __proto__: null } as never)).toEqual(readConfig({}));
});

test('the first secret is the newest, and spaces around the commas are no part of one', () => {
  expect(readConfig({ KEY_SECRET: ` ${SECRET}n ,${SECRET}o` }).KEY_SECRET).toEqual([
    `${SECRET}n`,
    `${SECRET}o`,
  ]);
});

test('the limit of a new key is that of its environment', () => {
  const limits = (environment: Record<string, string>) =>
    Object.fromEntries(readConfig(environment).environmentLimits);
  const hourly = { limit: 1000, window_seconds: 3600 };
  expect(limits({})).toEqual({ live: hourly, test: hourly });
  expect(limits({ TEST_DEFAULT_RATE_LIMIT: '5/60' })).toEqual({
    live: hourly,
    test: { limit: 5, window_seconds: 60 },
  });
  expect(limits({ TEST_DEFAULT_RATE_LIMIT: 'off' })).toEqual({ live: hourly, test: null });
  expect(limits({ KEY_ENVIRONMENTS: 'prod', DEFAULT_RATE_LIMIT: 'off' })).toEqual({ prod: null });
});

test('the settings that were read cannot be changed', () => {
  expect(Object.isFrozen(readConfig({}))).toBe(true);
});

test('each environment can have a limit of its own, by its name', () => {
  const limits = (environment: Record<string, string>) =>
    Object.fromEntries(
      readConfig({ KEY_ENVIRONMENTS: 'live,staging,e2e', DEFAULT_RATE_LIMIT: '9/60', ...environment })
        .environmentLimits,
    );
  const common = { limit: 9, window_seconds: 60 };
  expect(limits({})).toEqual({ live: common, staging: common, e2e: common });
  expect(
    limits({
      LIVE_DEFAULT_RATE_LIMIT: '1/1',
      STAGING_DEFAULT_RATE_LIMIT: 'off',
      E2E_DEFAULT_RATE_LIMIT: '',
      TEST_DEFAULT_RATE_LIMIT: '5/60',
    }),
  ).toEqual({ live: { limit: 1, window_seconds: 1 }, staging: null, e2e: common });
});

test('a limit of an environment that is none is a fault of its own name, told once', () => {
  const KEY_ENVIRONMENTS = 'live,test,staging';
  expect(faultsOf({ KEY_ENVIRONMENTS, STAGING_DEFAULT_RATE_LIMIT: '1000' })).toEqual([
    expect.stringMatching(/^STAGING_DEFAULT_RATE_LIMIT must be limit\/seconds/),
  ]);
  expect(faultsOf({ KEY_ENVIRONMENTS, TEST_DEFAULT_RATE_LIMIT: '0/1' })).toEqual([
    expect.stringMatching(/^TEST_DEFAULT_RATE_LIMIT must be limit\/seconds/),
  ]);
  // Of an environment that there is not, nothing is read.
  expect(readConfig({ STAGING_DEFAULT_RATE_LIMIT: '1000' })).toEqual(readConfig({}));
});
