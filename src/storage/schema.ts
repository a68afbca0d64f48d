import { sql } from 'drizzle-orm';
import {
  type AnyPgColumn,
  bigint,
  boolean,
  check,
  customType,
  date,
  doublePrecision,
  index,
  integer,
  jsonb,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core';
import type { JsonObject } from '../domain/key.ts';
import type { Restrictions } from '../domain/restriction.ts';
import type { RouteRuleText } from '../domain/route-pattern.ts';

/*
 * The tables. drizzle-kit generates migrations/ from this file; what SQL says beyond it (triggers, the identity
 * of the system workspace) is added to the generated files by hand.
 */

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' });
/** Milliseconds, as the API shows them: a time that is read and compared is the time that was shown. */
const time = (name: string) => timestamp(name, { withTimezone: true, precision: 3, mode: 'date' });

/** Which values of KEY_SECRET tokens were minted with: a fingerprint, never the value. */
export const keySecrets = pgTable('key_secrets', {
  id: smallint().primaryKey().generatedAlwaysAsIdentity(),
  fingerprint: bytea().notNull().unique(),
});

/**
 * One row for each workspace that ever had a key or was put: its plan, and what create, rotate and bulk revoke lock.
 * A row that was never put, `updated_at` null, has the defaults.
 */
export const workspaces = pgTable(
  'workspaces',
  {
    id: text().primaryKey(),
    name: text(),
    maxActiveKeys: integer('max_active_keys'),
    allowedScopes: text('allowed_scopes').array(),
    maxKeyLifetimeDays: integer('max_key_lifetime_days'),
    rateLimit: integer('rate_limit'),
    rateLimitWindowSeconds: integer('rate_limit_window_seconds'),
    disabled: boolean().notNull().default(false),
    createdAt: time('created_at'),
    updatedAt: time('updated_at'),
  },
  (table) => [
    check(
      'workspaces_id_form',
      sql`${table.id} ~ '^[A-Za-z0-9_.:-]{1,100}$' AND ${table.id} NOT IN ('.', '..')`,
    ),
    check('workspaces_name_length', sql`char_length(${table.name}) BETWEEN 1 AND 120`),
    check(
      'workspaces_limits_form',
      sql`${table.maxActiveKeys} >= 0 AND ${table.maxKeyLifetimeDays} >= 1 AND cardinality(${table.allowedScopes}) >= 1 AND array_position(${table.allowedScopes}, NULL) IS NULL`,
    ),
    check(
      'workspaces_rate_limit_form',
      sql`num_nulls(${table.rateLimit}, ${table.rateLimitWindowSeconds}) IN (0, 2) AND ${table.rateLimit} >= 1 AND ${table.rateLimitWindowSeconds} BETWEEN 1 AND 2678400`,
    ),
    // Its keys are those that could enable it again.
    check(
      'workspaces_system_has_defaults',
      sql`${table.id} <> 'system' OR (NOT ${table.disabled} AND ${table.updatedAt} IS NULL)`,
    ),
  ],
);

export const apiKeys = pgTable(
  'api_keys',
  {
    /** A UUIDv7, so that the order of ids is the order of creation, and lists need no other. */
    id: uuid().primaryKey(),
    workspaceId: text('workspace_id')
      .notNull()
      .references(() => workspaces.id),
    environment: text().notNull(),
    name: text().notNull(),
    prefix: text().notNull(),
    lastCharacters: text('last_characters').notNull(),
    /** The argon2id PHC string of the whole token. */
    hash: text().notNull(),
    secretId: smallint('secret_id')
      .notNull()
      .references(() => keySecrets.id),
    scopes: text().array().notNull(),
    restrictions: jsonb().$type<Restrictions>(),
    rateLimit: integer('rate_limit'),
    rateLimitWindowSeconds: integer('rate_limit_window_seconds'),
    metadata: jsonb().$type<JsonObject>(),
    createdBy: text('created_by'),
    createdAt: time('created_at').notNull(),
    expiresAt: time('expires_at'),
    revokedAt: time('revoked_at'),
    revokedReason: text('revoked_reason'),
    rotatedFrom: uuid('rotated_from').references((): AnyPgColumn => apiKeys.id),
    rotatedTo: uuid('rotated_to').references((): AnyPgColumn => apiKeys.id),
  },
  (table) => [
    // Lists are newest first, and a page costs the same in a table of any size: each filter of equality has an index
    // in the order of creation. Scopes, names and expiries have one that finds the matches.
    index('api_keys_workspace').on(table.workspaceId, table.createdAt, table.id),
    index('api_keys_workspace_environment').on(
      table.workspaceId,
      table.environment,
      table.createdAt,
      table.id,
    ),
    index('api_keys_workspace_unrevoked')
      .on(table.workspaceId, table.createdAt, table.id)
      .where(sql`${table.revokedAt} IS NULL`),
    index('api_keys_workspace_revoked')
      .on(table.workspaceId, table.createdAt, table.id)
      .where(sql`${table.revokedAt} IS NOT NULL`),
    index('api_keys_created_by')
      .on(table.createdBy, table.createdAt, table.id)
      .where(sql`${table.createdBy} IS NOT NULL`),
    // `prefix <> ''` holds for every row. Only lists over all workspaces say it, so that for those of one workspace
    // the planner cannot take these, and walk past the keys of all others.
    index('api_keys_environment')
      .on(table.environment, table.createdAt, table.id)
      .where(sql`${table.prefix} <> ''`),
    index('api_keys_unrevoked')
      .on(table.createdAt, table.id)
      .where(sql`${table.revokedAt} IS NULL AND ${table.prefix} <> ''`),
    index('api_keys_revoked')
      .on(table.createdAt, table.id)
      .where(sql`${table.revokedAt} IS NOT NULL AND ${table.prefix} <> ''`),
    // What counts against a plan, the last to expire first.
    index('api_keys_workspace_expiry')
      .on(table.workspaceId, sql`coalesce(${table.expiresAt}, 'infinity')`)
      .where(sql`${table.revokedAt} IS NULL`),
    index('api_keys_name').on(table.name.op('text_pattern_ops'), table.id),
    index('api_keys_scopes').using('gin', table.scopes),
    index('api_keys_expires_at').on(table.expiresAt).where(sql`${table.expiresAt} IS NOT NULL`),
    index('api_keys_secret').on(table.secretId).where(sql`${table.revokedAt} IS NULL`),
    // Lists and their cursors take the order of ids and the order of creation for one.
    check(
      'api_keys_created_at_of_id',
      sql`('x' || left(replace(${table.id}::text, '-', ''), 12))::bit(48)::bigint = (extract(epoch FROM ${table.createdAt}) * 1000)::bigint`,
    ),
    check('api_keys_environment_form', sql`${table.environment} ~ '^[a-z][a-z0-9]{0,15}$'`),
    check(
      'api_keys_service_environment',
      sql`(${table.workspaceId} = 'system') = (${table.environment} = 'svc')`,
    ),
    check('api_keys_name_length', sql`char_length(${table.name}) BETWEEN 1 AND 120`),
    check('api_keys_prefix_form', sql`${table.prefix} ~ '^[a-z][a-z0-9]{0,15}_[a-z][a-z0-9]{0,15}_$'`),
    check('api_keys_last_characters_form', sql`${table.lastCharacters} ~ '^[0-9A-Za-z]{4}$'`),
    // Whole PHC strings alone: what is no hash, a token above all, cannot get here.
    check(
      'api_keys_hash_form',
      sql`${table.hash} ~ '^[$]argon2id[$]v=19[$]m=[0-9]+,t=[0-9]+,p=[0-9]+[$][A-Za-z0-9+/]{22,}[$][A-Za-z0-9+/]{43,}$'`,
    ),
    check(
      'api_keys_scopes_count',
      sql`cardinality(${table.scopes}) <= 64 AND array_position(${table.scopes}, NULL) IS NULL`,
    ),
    check(
      'api_keys_rate_limit_form',
      sql`num_nulls(${table.rateLimit}, ${table.rateLimitWindowSeconds}) IN (0, 2) AND ${table.rateLimit} >= 1 AND ${table.rateLimitWindowSeconds} BETWEEN 1 AND 2678400`,
    ),
    // A key has one successor.
    uniqueIndex('api_keys_rotated_from').on(table.rotatedFrom).where(sql`${table.rotatedFrom} IS NOT NULL`),
    check(
      'api_keys_rotated_to_end',
      sql`${table.rotatedTo} IS NULL OR ${table.revokedAt} IS NOT NULL OR ${table.expiresAt} IS NOT NULL`,
    ),
    check(
      'api_keys_reason_of_revoked',
      sql`${table.revokedReason} IS NULL OR ${table.revokedAt} IS NOT NULL`,
    ),
  ],
);

/** The scope catalogue: what each scope implies and grants (contract §6). */
export const scopes = pgTable(
  'scopes',
  {
    name: text().primaryKey(),
    /** A UUIDv7 of when the entry was first put: the order of lists. */
    id: uuid().notNull().unique(),
    description: text(),
    implies: text().array().notNull(),
    grants: jsonb().$type<readonly RouteRuleText[]>().notNull(),
    createdAt: time('created_at').notNull(),
    updatedAt: time('updated_at').notNull(),
  },
  (table) => [
    check(
      'scopes_name_form',
      sql`${table.name} ~ '^[a-z0-9][a-z0-9_.-]*(:[a-z0-9_.-]+)*$' AND char_length(${table.name}) <= 64`,
    ),
    check(
      'scopes_implies_others',
      sql`cardinality(${table.implies}) <= 64 AND array_position(${table.implies}, NULL) IS NULL AND array_position(${table.implies}, ${table.name}) IS NULL`,
    ),
    check('scopes_grants_form', sql`jsonb_typeof(${table.grants}) = 'array'`),
  ],
);

/**
 * Who did what to which key, from where. Appended in the transaction of the change itself, and never changed.
 * Partitioned by month, by the time in its ids (partitions.ts).
 */
export const auditEvents = pgTable(
  'audit_events',
  {
    /** A UUIDv7 of the time `at`. */
    id: uuid().primaryKey(),
    at: time('at').notNull(),
    action: text().notNull(),
    /** The service key that acted; null where an operator did, at the command line, or somebody who held a token. */
    actorKeyId: uuid('actor_key_id'),
    /** By which door the one came who held a token (storage/audit.ts); null for all others. */
    source: text(),
    /** Null where what was changed belongs to no workspace. */
    workspaceId: text('workspace_id'),
    keyId: uuid('key_id'),
    /** The name of what was changed, where it is neither a key nor a workspace. */
    target: text(),
    before: jsonb().$type<JsonObject>(),
    after: jsonb().$type<JsonObject>(),
    address: text(),
    requestId: text('request_id'),
  },
  (table) => [
    // In the order of time, which the primary key does not have: see api_keys.
    index('audit_events_workspace_at').on(table.workspaceId, table.at, table.id),
    index('audit_events_workspace_action_at').on(table.workspaceId, table.action, table.at, table.id),
    index('audit_events_key_at').on(table.keyId, table.at, table.id),
    index('audit_events_actor_at').on(table.actorKeyId, table.at, table.id),
    index('audit_events_action_at').on(table.action, table.at, table.id),
    index('audit_events_source_at')
      .on(table.source, table.at, table.id)
      .where(sql`${table.source} IS NOT NULL`),
  ],
);

/**
 * First answers to requests with an Idempotency-Key, tokens among them, for 24 h: sealed with what is in no table
 * (domain/sealed-answer.ts), and stored in the transaction of what they tell of.
 */
export const sealedAnswers = pgTable(
  'sealed_answers',
  {
    id: uuid().primaryKey(),
    /** An HMAC under KEY_SECRET of the calling service key's id and the Idempotency-Key. */
    mac: bytea().notNull().unique(),
    sealed: bytea().notNull(),
    createdAt: time('created_at').notNull(),
  },
  (table) => [
    index('sealed_answers_created_at').on(table.createdAt),
    check('sealed_answers_mac_form', sql`octet_length(${table.mac}) = 32`),
    // Salt, nonce and tag are 60; a body of 64 KiB makes no answer that is much larger.
    check('sealed_answers_sealed_size', sql`octet_length(${table.sealed}) BETWEEN 60 AND 131072`),
  ],
);

/**
 * What access tokens are signed with (domain/signing-schedule.ts). The public half stands in the sealed text too:
 * nobody without KEY_SECRET can add a key that would be believed.
 */
export const signingKeys = pgTable(
  'signing_keys',
  {
    /** The RFC 7638 thumbprint of the public key, under which what follows was sealed. */
    kid: text().primaryKey(),
    /** The private JWK (domain/sealing.ts). */
    sealed: bytea().notNull(),
    /** The value of KEY_SECRET that it was sealed with. */
    secretId: smallint('secret_id')
      .notNull()
      .references(() => keySecrets.id),
    signsFrom: time('signs_from').notNull(),
  },
  (table) => [check('signing_keys_kid_form', sql`${table.kid} ~ '^[A-Za-z0-9_-]{43}$'`)],
);

/** Access tokens that were revoked one by one, until they would have expired. */
export const revokedTokens = pgTable(
  'revoked_tokens',
  {
    jti: uuid().primaryKey(),
    expiresAt: time('expires_at').notNull(),
  },
  (table) => [index('revoked_tokens_expires_at').on(table.expiresAt)],
);

/**
 * Single introspections, and requests that APIs reported. Partitioned by day, by the time in its ids (partitions.ts).
 *
 * Any combination of filters is answered from an index that has them all and then the order of time. Where an
 * address is asked for without an outcome, there are few outcomes to look through. A key is of one workspace.
 */
export const requestLogs = pgTable(
  'request_logs',
  {
    /** A UUIDv7 of the time `at`. */
    id: uuid().primaryKey(),
    at: time('at').notNull(),
    /** Null, as is the workspace, where no key of a visible workspace was shown. */
    keyId: uuid('key_id'),
    workspaceId: text('workspace_id'),
    /** What an introspection came to; `reported`: no introspection. */
    code: text().notNull(),
    /** What the API answered, or is to answer, its own client. */
    status: smallint(),
    durationMs: doublePrecision('duration_ms'),
    ip: text(),
    ipFirstSeen: boolean('ip_first_seen').notNull().default(false),
    /** And that the key had been used from others before: worth a look, which the first of all is not. */
    ipIsFurther: boolean('ip_is_further').notNull().default(false),
    method: text(),
    path: text(),
    /** The service key that asked or reported. */
    callerKeyId: uuid('caller_key_id'),
    requestId: text('request_id'),
  },
  (table) => [
    index('request_logs_workspace').on(table.workspaceId, table.at, table.id),
    index('request_logs_workspace_code').on(table.workspaceId, table.code, table.at, table.id),
    index('request_logs_workspace_ip').on(table.workspaceId, table.ip, table.code, table.at, table.id),
    index('request_logs_key').on(table.keyId, table.at, table.id),
    index('request_logs_key_code').on(table.keyId, table.code, table.at, table.id),
    index('request_logs_key_ip').on(table.keyId, table.ip, table.code, table.at, table.id),
    index('request_logs_code').on(table.code, table.at, table.id),
    index('request_logs_ip').on(table.ip, table.code, table.at, table.id),
    // Few entries are in these: signals are read from them.
    index('request_logs_further').on(table.at, table.id).where(sql`${table.ipIsFurther}`),
    index('request_logs_workspace_further')
      .on(table.workspaceId, table.at, table.id)
      .where(sql`${table.ipIsFurther}`),
  ],
);

/** From which addresses a key was used, so that a new one can be told: written once a day for each of them. */
export const keyAddresses = pgTable(
  'key_addresses',
  {
    keyId: uuid('key_id').notNull(),
    ip: text().notNull(),
    firstSeenAt: time('first_seen_at').notNull(),
    /** The last day that it was seen, of UTC. */
    seenOn: date('seen_on').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.keyId, table.ip] }),
    index('key_addresses_seen_on').on(table.seenOn),
  ],
);

/**
 * The running instances that may answer from memory (docs/revocation.md). An id is used once; a row goes only when
 * it is released: by its owner, whose memory is empty by then, or by one that has waited its fence out.
 */
export const instances = pgTable(
  'instances',
  {
    id: uuid().primaryKey(),
    leaseMs: integer('lease_ms').notNull(),
    fenced: boolean().notNull().default(false),
    released: boolean().notNull().default(false),
    /** For the eyes of operators; nothing compares it. */
    renewedAt: time('renewed_at').notNull().defaultNow(),
  },
  (table) => [check('instances_lease_form', sql`${table.leaseMs} > 0`)],
);

/** Which instance has dropped what a change made stale. Worth something for seconds; a crash may empty it. */
export const acknowledgements = pgTable(
  'acknowledgements',
  {
    changeId: uuid('change_id').notNull(),
    instanceId: uuid('instance_id').notNull(),
    at: time('at').notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.changeId, table.instanceId] })],
);

/**
 * The memo: that the token which this MAC was made of has matched the hash of this key. It saves other instances
 * the argon2, proves nothing without KEY_SECRET, and a crash may empty it.
 */
export const verifiedSecrets = pgTable('verified_secrets', {
  keyId: uuid('key_id').primaryKey(),
  mac: bytea().notNull(),
});

/**
 * How many introspections of a key came to what outcome, by the hour, but for those that `key_uses` counts; under
 * `EVERY_KEY`, all keys of the workspace. Partitioned by month, by hand.
 */
export const usage = pgTable(
  'usage',
  {
    workspaceId: text('workspace_id').notNull(),
    keyId: uuid('key_id').notNull(),
    /** Its beginning. */
    hour: time('hour').notNull(),
    /** `active`, or the code of the refusal. */
    code: text().notNull(),
    count: bigint({ mode: 'number' }).notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.workspaceId, table.keyId, table.hour, table.code] }),
    check('usage_count_form', sql`${table.count} > 0`),
  ],
);

/** Reported response times, in the buckets of domain/duration-histogram.ts. Keyed and partitioned as `usage` is. */
export const usageDurations = pgTable(
  'usage_durations',
  {
    workspaceId: text('workspace_id').notNull(),
    keyId: uuid('key_id').notNull(),
    hour: time('hour').notNull(),
    bucket: smallint().notNull(),
    count: bigint({ mode: 'number' }).notNull(),
    /** All durations of the bucket together, in microseconds: a sum of whole numbers is exact in any order. */
    sumUs: bigint('sum_us', { mode: 'number' }).notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.workspaceId, table.keyId, table.hour, table.bucket] }),
    check('usage_durations_form', sql`${table.count} > 0 AND ${table.sumUs} >= 0`),
  ],
);

/** The last batch of counts that each recorder has committed: a batch that is sent twice is counted once. */
export const usageFlushes = pgTable(
  'usage_flushes',
  {
    recorder: uuid().primaryKey(),
    sequence: bigint({ mode: 'number' }).notNull(),
    at: time('at').notNull().defaultNow(),
  },
  (table) => [index('usage_flushes_at').on(table.at)],
);

/**
 * When a key was last used. Apart from `api_keys`, whose every index would be written with each use. A trigger makes
 * the row with the key, so that keys that were never used are found by the same index.
 */
export const keyUses = pgTable(
  'key_uses',
  {
    keyId: uuid('key_id').primaryKey(),
    /** The last use; before the first one, the creation. */
    idleSince: time('idle_since').notNull(),
    lastUsed: time('last_used'),
    lastUsedIp: text('last_used_ip'),
    /** The hour of `idle_since`, as its beginning: so a use writes no index, but the first of an hour. */
    idleHour: time('idle_hour')
      .notNull()
      .generatedAlwaysAs(sql`date_trunc('hour', idle_since AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'`),
    /** The hour of the last use, as its beginning, and how often the key was allowed within it: in `usage` once it is over. */
    usedHour: time('used_hour').notNull().default(sql`'-infinity'`),
    hourCount: bigint('hour_count', { mode: 'number' }).notNull().default(0),
    /** What the statement that wrote this row has moved to `usage` (storage/usage.ts); of interest to that alone. */
    movedHour: time('moved_hour'),
    movedCount: bigint('moved_count', { mode: 'number' }),
  },
  (table) => [
    index('key_uses_idle_hour').on(table.idleHour),
    check('key_uses_form', sql`${table.lastUsed} IS NULL OR ${table.lastUsed} <= ${table.idleSince}`),
  ],
);

/**
 * The keys that signals of state are about: neither revoked nor rotated, nor expired, as far as upkeep has come. An
 * expired key stays so, and is taken out by upkeep; all else is done by triggers of `api_keys`. Apart from `api_keys`
 * and `key_uses`, so that no rule has to read past the keys that are no more, and so that a use costs no index of
 * theirs, but once a day.
 */
export const watchedKeys = pgTable(
  'watched_keys',
  {
    keyId: uuid('key_id').primaryKey(),
    workspaceId: text('workspace_id').notNull(),
    expiresAt: time('expires_at'),
    /** The day of UTC, as its beginning, of the last use; before the first one, of the creation. */
    idleDay: time('idle_day').notNull(),
  },
  (table) => [
    index('watched_keys_workspace').on(table.workspaceId, table.keyId),
    index('watched_keys_idle').on(table.idleDay, table.keyId),
    index('watched_keys_workspace_idle').on(table.workspaceId, table.idleDay, table.keyId),
    index('watched_keys_expiry').on(table.expiresAt, table.keyId).where(sql`${table.expiresAt} IS NOT NULL`),
    index('watched_keys_workspace_expiry')
      .on(table.workspaceId, table.expiresAt, table.keyId)
      .where(sql`${table.expiresAt} IS NOT NULL`),
  ],
);

/** Hours in which a key's requests suddenly grew: a row for each, made when it is noticed. */
export const keyGrowths = pgTable(
  'key_growths',
  {
    hour: time('hour').notNull(),
    keyId: uuid('key_id').notNull(),
    workspaceId: text('workspace_id').notNull(),
    /** The requests of its busiest hour of the week before. */
    busiest: bigint({ mode: 'number' }).notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.hour, table.keyId] }),
    index('key_growths_workspace').on(table.workspaceId, table.hour, table.keyId),
  ],
);

/** Failed authentications by address and window: of introspected strings that are no keys, and of Claviger's own callers. */
export const failedAuthentications = pgTable(
  'failed_authentications',
  {
    windowStart: time('window_start').notNull(),
    ip: text().notNull(),
    introspections: bigint({ mode: 'number' }).notNull(),
    calls: bigint({ mode: 'number' }).notNull(),
    /** Whether there were as many as make a burst. */
    isBurst: boolean('is_burst').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.windowStart, table.ip] }),
    index('failed_authentications_burst').on(table.windowStart, table.ip).where(sql`${table.isBurst}`),
  ],
);

/**
 * What instances have leased of each limit (docs/rate-limits.md): one row for each subject and window length, which
 * moves on with the windows. Logged: a lease that a crash of the server forgot would be granted twice.
 */
export const rateWindows = pgTable(
  'rate_windows',
  {
    /** `key_…`, or `workspace:` and its id. */
    subject: text().notNull(),
    windowSeconds: integer('window_seconds').notNull(),
    /** Seconds since the epoch, by the database's clock. */
    windowStart: bigint('window_start', { mode: 'number' }).notNull(),
    /** What instances have taken of the window, spent or not. */
    leased: bigint({ mode: 'number' }).notNull(),
    /** The part of it that they hold in stock, as they last told. */
    stocked: bigint({ mode: 'number' }).notNull(),
    /** Whether somebody asked for more than was left: from then on nothing is taken into stock, and returns are notified. */
    wanted: boolean().notNull(),
    /*
     * What the last exchange answered. The statement that writes a row can tell of nothing but the row: which of its
     * asks it was, what it was granted, and whether a call or a return is to be notified.
     */
    nth: integer().notNull().default(0),
    grantedUses: bigint('granted_uses', { mode: 'number' }).notNull().default(0),
    grantedStock: bigint('granted_stock', { mode: 'number' }).notNull().default(0),
    calls: boolean().notNull().default(false),
    returns: boolean().notNull().default(false),
  },
  (table) => [
    primaryKey({ columns: [table.subject, table.windowSeconds] }),
    check(
      'rate_windows_form',
      sql`${table.windowSeconds} > 0 AND ${table.windowStart} >= 0 AND ${table.leased} >= 0 AND ${table.stocked} >= 0`,
    ),
  ],
);
