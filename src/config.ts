import { availableParallelism } from 'node:os';
import { z } from 'zod';
import { parseCidr } from './domain/address.ts';
import { MAX_LIMIT, MAX_WINDOW_SECONDS, type RateLimit } from './domain/rate-limit.ts';
import { MAX_ACCESS_TOKEN_SECONDS } from './domain/signing-schedule.ts';
import { LABEL_PATTERN } from './domain/token.ts';
import { SERVICE_ENVIRONMENT } from './domain/workspace.ts';

/** One environment variable: how it is read, and how the README's table describes it. */
interface Setting<T> {
  readonly schema: z.ZodType<T, string | undefined>;
  /** As it would be written in the environment; empty where there is none. */
  readonly default: string;
  readonly range: string;
  readonly purpose: string;
}

const MIN_SECRET_LENGTH = 32;
const MAX_ENVIRONMENTS = 16;
/** The size of libuv's pool where UV_THREADPOOL_SIZE does not say otherwise. */
const LIBUV_THREADS = 4;

/** Every setting there is. The README's table is tested against it. */
export const SETTINGS = {
  DATABASE_URL: {
    schema: databaseUrl().optional(),
    default: '',
    range: '`postgres://…`',
    purpose:
      'The PostgreSQL (14 or newer) to use, by TLS with `?sslmode=verify-full&sslrootcert=…`. Unset: an embedded one in `DATA_DIR`.',
  },
  DATABASE_LISTEN_URL: {
    schema: databaseUrl().optional(),
    default: '',
    range: '`postgres://…`',
    purpose:
      'A direct connection to the same server, where `DATABASE_URL` goes through a transaction pooler.',
  },
  DATABASE_POOL_SIZE: {
    schema: integer(2, 1000).default(10),
    default: '10',
    range: '2–1000',
    purpose: 'Connections to the database, per instance.',
  },
  DATA_DIR: {
    schema: z.string().default('.data'),
    default: '.data',
    range: 'a folder',
    purpose: 'Where the embedded PostgreSQL and its secret live.',
  },
  KEY_SECRET: {
    schema: keySecrets().optional(),
    default: '',
    range: `comma-separated, each at least ${MIN_SECRET_LENGTH} characters`,
    purpose: 'What tokens are minted with: the first mints, all verify. Required with `DATABASE_URL`.',
  },
  LEASE_SECONDS: {
    schema: integer(1, 300).default(10),
    default: '10',
    range: '1–300',
    purpose:
      'How long memory answers without the database, and how long a revocation waits for a silent instance.',
  },
  CACHED_KEYS: {
    schema: integer(1, 10_000_000).default(250_000),
    default: '250000',
    range: '1–10000000',
    purpose: 'How many keys are remembered in memory.',
  },
  VERIFICATION_MEMO: {
    schema: onOff().default(true),
    default: 'on',
    range: '`on` or `off`',
    purpose: 'Whether instances share, through the database, which secrets were verified.',
  },
  RECORDING: {
    schema: onOff().default(true),
    default: 'on',
    range: '`on` or `off`',
    purpose: 'Whether introspections are recorded: usage, last use, request logs. Usage reports always are.',
  },
  REQUEST_LOG_SAMPLE: {
    schema: share().prefault('1'),
    default: '1',
    range: '0–1',
    purpose: 'The share of allowed introspections that the request log holds. It holds every refusal.',
  },
  REQUEST_LOG_PER_SECOND: {
    schema: integer(4, 100_000).default(1_000),
    default: '1000',
    range: '4–100000',
    purpose: 'Entries a second and instance at most; what is over is dropped and counted.',
  },
  REQUEST_LOG_RETENTION_DAYS: {
    schema: integer(1, 400).default(30),
    default: '30',
    range: '1–400',
    purpose: 'How long the request log is kept, in whole days.',
  },
  USAGE_RETENTION_DAYS: {
    schema: integer(1, 3650).default(400),
    default: '400',
    range: '1–3650',
    purpose: 'How long usage is kept, in whole months.',
  },
  AUDIT_RETENTION_DAYS: {
    schema: days(30, 3650).prefault('730'),
    default: '730',
    range: '30–3650 or `off`',
    purpose: 'How long audit events are kept, in whole months; `off`: for ever.',
  },
  KEY_PREFIX: {
    schema: label().default('ck'),
    default: 'ck',
    range: '`[a-z][a-z0-9]{0,15}`',
    purpose: 'What new tokens begin with.',
  },
  KEY_ENVIRONMENTS: {
    schema: environments().prefault('live,test'),
    default: 'live,test',
    range: `comma-separated, 1–${MAX_ENVIRONMENTS}, each \`[a-z][a-z0-9]{0,15}\``,
    purpose: 'The environments that keys can be made in.',
  },
  DEFAULT_RATE_LIMIT: {
    schema: rateLimit().prefault('1000/3600'),
    default: '1000/3600',
    range: '`limit/seconds` or `off`',
    purpose: 'The limit of a key that is made without one.',
  },
  TEST_DEFAULT_RATE_LIMIT: {
    schema: rateLimit().optional(),
    default: '',
    range: '`limit/seconds` or `off`',
    purpose:
      'The same for the environment `test`, and so for each other by its name, such as `STAGING_DEFAULT_RATE_LIMIT`; unset: `DEFAULT_RATE_LIMIT`.',
  },
  RATE_LIMIT_ON_OUTAGE: {
    schema: z.enum(['allow', 'refuse'], 'must be allow or refuse').default('allow'),
    default: 'allow',
    range: '`allow` or `refuse`',
    purpose:
      'What becomes of keys with a rate limit while the database is away and the quota at hand is spent.',
  },
  ROTATION_DUE_DAYS: {
    schema: integer(1, 3650).default(90),
    default: '90',
    range: '1–3650',
    purpose: 'The age at which a key is due for rotation.',
  },
  SIGNAL_UNUSED_DAYS: {
    schema: integer(1, 3650).default(90),
    default: '90',
    range: '1–3650',
    purpose: 'Signals: for how many days a key is not used until it is told of as unused.',
  },
  SIGNAL_EXPIRING_DAYS: {
    schema: integer(1, 365).default(14),
    default: '14',
    range: '1–365',
    purpose: 'Signals: how many days before its expiry a key is told of as expiring.',
  },
  SIGNAL_GROWTH_FACTOR: {
    schema: integer(2, 1_000_000).default(10),
    default: '10',
    range: '2–1000000',
    purpose:
      "Signals: how many times the busiest hour of its last week an hour's requests of a key are a growth.",
  },
  SIGNAL_GROWTH_MINIMUM: {
    schema: integer(1, 1_000_000_000).default(1_000),
    default: '1000',
    range: '1–1000000000',
    purpose: "Signals: how many an hour's requests of a key are at least to be a growth.",
  },
  SIGNAL_BURST_FAILURES: {
    schema: integer(1, 1_000_000).default(100),
    default: '100',
    range: '1–1000000',
    purpose: 'Signals: how many failed authentications of an address within a window are a burst.',
  },
  SIGNAL_BURST_MINUTES: {
    schema: integer(1, 1440).default(10),
    default: '10',
    range: '1–1440',
    purpose: 'Signals: the length of that window.',
  },
  SIGNAL_RECENT_DAYS: {
    schema: integer(1, 30).default(7),
    default: '7',
    range: '1–30',
    purpose: 'Signals: for how long growths, new addresses and bursts are told of.',
  },
  CATALOGUE_UNMATCHED: {
    schema: z.enum(['refuse', 'allow'], 'must be refuse or allow').default('refuse'),
    default: 'refuse',
    range: '`refuse` or `allow`',
    purpose:
      'What becomes of a method and path that no scope grants, once some scope of the catalogue grants any.',
  },
  ISSUER: {
    schema: issuer().optional(),
    default: '',
    range: '`http(s)://…` with no slash at its end',
    purpose:
      'The URL that clients reach this service at: `iss` and `aud` of access tokens, and where their metadata says the endpoints are. Unset: `http://HOST:PORT`, with TLS `https`.',
  },
  OAUTH_TOKEN_SECONDS: {
    schema: integer(60, MAX_ACCESS_TOKEN_SECONDS).default(3_600),
    default: '3600',
    range: `60–${MAX_ACCESS_TOKEN_SECONDS}`,
    purpose: 'How long an access token is valid; less where its key expires sooner.',
  },
  OAUTH_KEY_ROTATION_DAYS: {
    schema: integer(1, 3650).default(30),
    default: '30',
    range: '1–3650',
    purpose: 'How long a key signs access tokens. The next one is published a day before its turn.',
  },
  CALLER_RATE_LIMIT: {
    schema: perMinute().prefault('6000'),
    default: '6000',
    range: '1–1000000000 or `off`',
    purpose: 'Management requests a minute, per service key and instance.',
  },
  INTROSPECT_RATE_LIMIT: {
    schema: perMinute().prefault('off'),
    default: 'off',
    range: '1–1000000000 or `off`',
    purpose: 'Introspections a minute, per service key and instance.',
  },
  FAILED_AUTH_RATE_LIMIT: {
    schema: perMinute().prefault('300'),
    default: '300',
    range: '1–1000000000 or `off`',
    purpose:
      'Failed authentications and unknown routes a minute, per address and instance; and apart from these as many reports of leaks.',
  },
  GITHUB_KEYS_URL: {
    schema: keysUrl().optional(),
    default: '',
    range: '`https://…`',
    purpose:
      'Where the public keys of GitHub are fetched that its reports of leaks are signed with; GitHub publishes them at `https://api.github.com/meta/public_keys/secret_scanning`. Unset: nothing is fetched.',
  },
  GITHUB_KEYS_FILE: {
    schema: z.string().optional(),
    default: '',
    range: 'a path',
    purpose: 'A file with such keys, in the same JSON.',
  },
  TRUSTED_PROXY_CIDRS: {
    schema: cidrs().prefault(''),
    default: '',
    range: 'comma-separated addresses and CIDRs',
    purpose: 'Proxies whose `X-Forwarded-For` is believed.',
  },
  AUTHORIZE_TRUSTED_CIDRS: {
    schema: cidrs().prefault(''),
    default: '',
    range: 'comma-separated addresses and CIDRs',
    purpose: 'Gateways that may ask `/v1/authorize` without a service key.',
  },
  AUTHORIZE_SOURCE: {
    schema: z
      .enum(['forwarded', 'original', 'path'], 'must be forwarded, original or path')
      .default('forwarded'),
    default: 'forwarded',
    range: '`forwarded`, `original` or `path`',
    purpose:
      'Where `/v1/authorize` takes method and path from: `X-Forwarded-Method` and `-Uri`, `X-Original-Method` and `-URI`, or its own request line.',
  },
  AUTHORIZE_FORWARDED_FOR_HOPS: {
    schema: integer(1, 16).default(1),
    default: '1',
    range: '1–16',
    purpose: "Which entry of `X-Forwarded-For` is the client's address there, counted from the right.",
  },
  ADMIN_KEY_FILE: {
    schema: z.string().optional(),
    default: '',
    range: 'a path',
    purpose: 'Where the first admin key is written (mode 0600) instead of standard output.',
  },
  ARGON2_MEMORY_KIB: {
    schema: integer(1024, 4_194_304).default(19_456),
    default: '19456',
    range: '1024–4194304',
    purpose: 'Memory of one argon2id hash.',
  },
  ARGON2_TIME_COST: {
    schema: integer(1, 1000).default(2),
    default: '2',
    range: '1–1000',
    purpose: 'Passes of one argon2id hash.',
  },
  ARGON2_PARALLELISM: {
    schema: integer(1, 16).default(1),
    default: '1',
    range: '1–16',
    purpose: 'Lanes of one argon2id hash.',
  },
  TLS_CERT_FILE: {
    schema: z.string().optional(),
    default: '',
    range: 'a path',
    purpose:
      'Serve HTTPS, TLS 1.2 or newer, with this certificate: PEM, its chain behind it. Read again on SIGHUP. Unset: plain HTTP.',
  },
  TLS_KEY_FILE: {
    schema: z.string().optional(),
    default: '',
    range: 'a path',
    purpose: 'The private key of that certificate: PEM, not encrypted.',
  },
  METRICS_ENABLED: {
    schema: onOff().default(true),
    default: 'on',
    range: '`on` or `off`',
    purpose: 'Whether `/metrics` answers Prometheus.',
  },
  OTEL_EXPORTER_OTLP_ENDPOINT: {
    schema: httpUrl().optional(),
    default: '',
    range: '`http://…` or `https://…`',
    purpose: 'Where traces are sent, by OTLP over HTTP; unset: there are none (docs/tracing.md).',
  },
  OTEL_TRACES_SAMPLER_ARG: {
    schema: share().prefault('1'),
    default: '1',
    range: '0–1',
    purpose: 'The share of traces that are kept, of those that begin here.',
  },
  HOST: {
    schema: z.string().default('127.0.0.1'),
    default: '127.0.0.1',
    range: 'an address',
    purpose: 'Where to listen; `0.0.0.0` in the image.',
  },
  PORT: {
    schema: integer(0, 65_535).default(8080),
    default: '8080',
    range: '0–65535',
    purpose: 'The port to listen on; 0 takes a free one.',
  },
  LOG_LEVEL: {
    schema: z
      .enum(
        ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
        'must be trace, debug, info, warn, error, fatal or silent',
      )
      .default('info'),
    default: 'info',
    range: '`trace`, `debug`, `info`, `warn`, `error`, `fatal`, `silent`',
    purpose: 'What is logged, as JSON lines on standard error.',
  },
} as const satisfies Record<string, Setting<unknown>>;

type Settings = typeof SETTINGS;
type Values = { readonly [Name in keyof Settings]: z.output<Settings[Name]['schema']> };

/** The settings, checked. `environmentLimits` has the default limit of each environment. */
export type Config = Values & {
  readonly environmentLimits: ReadonlyMap<string, RateLimit | null>;
  readonly argon2Slots: number;
};

/** Settings that the service cannot start with. `message` lists every fault, a line each, and repeats no value. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

/** Reads the environment. An empty variable is unset. */
export function readConfig(environment: Readonly<Record<string, string | undefined>>): Config {
  const givenAs = (name: string) => (environment[name] === '' ? undefined : environment[name]);
  // A set: the limit of an environment may be a setting of the table too.
  const faults = new Set<string>();
  const read = <T>(name: string, schema: z.ZodType<T, string | undefined>): T | undefined => {
    const result = schema.safeParse(givenAs(name));
    if (result.success) return result.data;
    faults.add(`${name} ${[...new Set(result.error.issues.map((issue) => issue.message))].join('; ')}`);
    return undefined;
  };
  const values: Record<string, unknown> = {};
  for (const [name, setting] of Object.entries<Setting<unknown>>(SETTINGS)) {
    values[name] = read(name, setting.schema);
  }
  // Each member was parsed by the schema of its name, or there is a fault.
  const checked = values as Values;
  const limits = (checked.KEY_ENVIRONMENTS ?? []).map((name) => ({
    name,
    limit: read(`${name.toUpperCase()}_DEFAULT_RATE_LIMIT`, rateLimit().optional()),
  }));
  if (givenAs('DATABASE_URL') !== undefined && givenAs('KEY_SECRET') === undefined) {
    faults.add('KEY_SECRET is required with DATABASE_URL; make one with: openssl rand -base64 33');
  }
  if (givenAs('DATABASE_LISTEN_URL') !== undefined && givenAs('DATABASE_URL') === undefined) {
    faults.add('DATABASE_LISTEN_URL goes with DATABASE_URL, which is unset');
  }
  for (const [one, other] of [
    ['TLS_CERT_FILE', 'TLS_KEY_FILE'],
    ['TLS_KEY_FILE', 'TLS_CERT_FILE'],
  ] as const) {
    if (givenAs(one) !== undefined && givenAs(other) === undefined)
      faults.add(`${one} goes with ${other}, which is unset`);
  }
  if (faults.size > 0) throw new ConfigError([...faults].join('\n'));

  return Object.freeze({
    ...checked,
    environmentLimits: new Map(
      limits.map(({ name, limit }) => [name, limit === undefined ? checked.DEFAULT_RATE_LIMIT : limit]),
    ),
    // One core stays with the event loop; and argon2 has no more threads than libuv's pool.
    argon2Slots: Math.max(
      1,
      Math.min(availableParallelism() - 1, Number(environment.UV_THREADPOOL_SIZE) || LIBUV_THREADS),
    ),
  });
}

function integer(least: number, most: number) {
  const message = `must be a whole number from ${least} to ${most}`;
  return z
    .string()
    .regex(/^\d{1,10}$/, message)
    .transform(Number)
    .refine((value) => value >= least && value <= most, message);
}

function onOff() {
  return z.enum(['on', 'off'], 'must be on or off').transform((value) => value === 'on');
}

function label() {
  return z
    .string()
    .regex(LABEL_PATTERN, 'must be a lower-case letter and up to 15 lower-case letters or digits');
}

function databaseUrl() {
  return z
    .string()
    .refine(
      (value) => /^postgres(ql)?:\/\//.test(value) && URL.canParse(value),
      'must be a URL like postgres://user:password@host:5432/database',
    );
}

/** RFC 8414 §2: no query, no fragment. `http` is for networks that are trusted as they are. */
function issuer() {
  return z.string().refine((value) => {
    if (!/^https?:\/\/[^\s?#@]*[^\s?#@/]$/.test(value) || !URL.canParse(value)) return false;
    // Compared as text by whoever reads it: one spelling, so that nobody's is another.
    const { href, pathname } = new URL(value);
    return href === (pathname === '/' ? `${value}/` : value);
  }, 'must be a URL like https://keys.example.com, with no query, no fragment and no slash at its end');
}

/** HTTPS, or this machine: whoever can change an answer on its way could sign with a key of their own. */
function keysUrl() {
  return z
    .string()
    .refine(
      (value) =>
        URL.canParse(value) &&
        (value.startsWith('https://') || /^http:\/\/(127\.0\.0\.1|\[::1\]|localhost)[:/]/.test(value)),
      'must be an https:// URL',
    );
}

function httpUrl() {
  return z
    .string()
    .refine(
      (value) => /^https?:\/\//.test(value) && URL.canParse(value),
      'must be a URL like http://127.0.0.1:4318',
    );
}

function list<T extends z.ZodType<unknown, string>>(entry: T) {
  return z
    .string()
    .transform((value) =>
      value
        .split(',')
        .map((part) => part.trim())
        .filter((part) => part !== ''),
    )
    .pipe(z.array(entry));
}

function keySecrets() {
  return list(
    z
      .string()
      .min(
        MIN_SECRET_LENGTH,
        `must be comma-separated secrets of at least ${MIN_SECRET_LENGTH} characters each; make one with: openssl rand -base64 33`,
      ),
  )
    .refine((secrets) => new Set(secrets).size === secrets.length, 'must not name a secret twice')
    .refine(
      (secrets): secrets is [string, ...string[]] => secrets.length > 0,
      'must name at least one secret',
    )
    .transform(([first, ...others]): [string, ...string[]] => [first ?? '', ...others]);
}

function environments() {
  return list(label())
    .refine(
      (names) => names.length >= 1 && names.length <= MAX_ENVIRONMENTS,
      `must name 1 to ${MAX_ENVIRONMENTS} environments`,
    )
    .refine((names) => new Set(names).size === names.length, 'must not name an environment twice')
    .refine(
      (names) => !names.includes(SERVICE_ENVIRONMENT),
      `must not name "${SERVICE_ENVIRONMENT}", which is reserved for service keys`,
    );
}

function cidrs() {
  return list(
    z
      .string()
      .refine(
        (entry) => parseCidr(entry) !== undefined,
        'must be comma-separated addresses and CIDRs such as 10.0.0.0/8',
      ),
  );
}

/** `limit/seconds`, or `off` as `null`. */
function rateLimit() {
  const message = `must be limit/seconds such as 1000/3600 (up to ${MAX_LIMIT}/${MAX_WINDOW_SECONDS}), or off`;
  return z
    .string()
    .regex(/^([1-9]\d{0,9}\/[1-9]\d{0,6}|off)$/, message)
    .transform((value): RateLimit | null => {
      if (value === 'off') return null;
      const [limit, windowSeconds] = value.split('/').map(Number);
      return { limit: limit ?? 0, window_seconds: windowSeconds ?? 0 };
    })
    .refine(
      (limit) => limit === null || (limit.limit <= MAX_LIMIT && limit.window_seconds <= MAX_WINDOW_SECONDS),
      message,
    );
}

/** From 0 to 1. */
function share() {
  const message = 'must be a number from 0 to 1 such as 0.05';
  return z
    .string()
    .regex(/^[01](\.\d{1,9})?$/, message)
    .transform(Number)
    .refine((value) => value <= 1, message);
}

/** Days, or `off` as `null`. */
function days(least: number, most: number) {
  const message = `must be a whole number from ${least} to ${most}, or off`;
  return z
    .string()
    .regex(/^(\d{1,4}|off)$/, message)
    .transform((value) => (value === 'off' ? null : Number(value)))
    .refine((value) => value === null || (value >= least && value <= most), message);
}

/** Requests a minute, or `off` as `null`. */
function perMinute() {
  return z
    .string()
    .regex(/^([1-9]\d{0,8}|1000000000|off)$/, 'must be a whole number from 1 to 1000000000, or off')
    .transform((value) => (value === 'off' ? null : Number(value)));
}
