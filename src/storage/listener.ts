import { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import type { Connection } from './connection.ts';
import { StorageError } from './database.ts';
import { acknowledgementChannel } from './membership.ts';

/** Why there is no listener, as one line for the operator. */
export class ListenerError extends Error {
  override readonly name = 'ListenerError';
}

export interface Acknowledgement {
  readonly changeId: string;
  /** The instance that waits for it, where it can be notified. */
  readonly waiter: string | null;
}

/** A connection of its own for LISTEN: what it hears, and the lease that stands and falls with it. */
export interface Listener {
  listen(channels: readonly string[]): Promise<void>;
  /** Which server this is, as system identifier and timeline, and whether it is a standby. */
  identify(): Promise<{ identity: string; inRecovery: boolean }>;
  /** Whether a notification with this payload arrives in time. */
  hear(payload: string, timeoutMs: number): Promise<boolean>;
  /** Registers an instance; answers the database's time in milliseconds. */
  register(id: string, leaseMs: number): Promise<number>;
  /** Renews a lease, unless it was fenced or released. Fails when no answer comes within `timeoutMs`. */
  renew(id: string, timeoutMs: number): Promise<{ databaseMs: number } | 'refused'>;
  /** Stores acknowledgements and notifies those who wait for them. */
  acknowledge(id: string, batch: readonly Acknowledgement[]): Promise<void>;
  /** Resolves when the connection is gone. */
  readonly lost: Promise<void>;
  close(): Promise<void>;
}

const CONNECT_TIMEOUT_MS = 5_000;
const QUERY_TIMEOUT_MS = 5_000;
const GOODBYE_MS = 200;
/** NOTIFY takes 8,000 bytes; an id and its separator take 37. */
const IDS_PER_NOTIFICATION = 200;
const NOW_MS = '(extract(epoch FROM clock_timestamp()) * 1000)::float8';

/** Connects. Every statement on the connection has a timeout: a half-open connection must not look like a slow one. */
export async function openListener(
  { config }: Connection,
  onNotification: (channel: string, payload: string) => void,
): Promise<Listener> {
  const socket = new Socket();
  const client = new pg.Client({
    ...config,
    application_name: 'claviger listener',
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: QUERY_TIMEOUT_MS,
    keepAlive: true,
    stream: () => socket,
  });
  const expected = new Map<string, () => void>();
  const lost = new Promise<void>((resolve) => {
    client.once('end', resolve);
    client.once('error', () => resolve());
  });
  // A second error has nobody to tell; without a listener it would end the process.
  client.on('error', () => undefined);
  client.on('notification', ({ channel, payload = '' }) => {
    const arrived = expected.get(payload);
    if (arrived !== undefined) arrived();
    else onNotification(channel, payload);
  });
  try {
    await client.connect();
    // A lease that a crash of the server forgets is one that no change waits for.
    await client.query('SET synchronous_commit = on');
  } catch (error) {
    socket.destroy();
    throw new ListenerError(`The listener cannot connect (${new StorageError(error).code}).`);
  }

  async function query<Row extends pg.QueryResultRow>(
    text: string,
    values: unknown[] = [],
    timeoutMs = QUERY_TIMEOUT_MS,
  ) {
    const config: pg.QueryConfig & { query_timeout: number } = { text, values, query_timeout: timeoutMs };
    return client.query<Row>(config).catch((error: unknown) => {
      throw new StorageError(error);
    });
  }

  return {
    async listen(channels) {
      for (const channel of channels) await query(`LISTEN ${pg.escapeIdentifier(channel)}`);
    },

    async identify() {
      const { rows } = await query<{ system: string; in_recovery: boolean }>(
        'SELECT system_identifier::text AS system, pg_is_in_recovery() AS in_recovery FROM pg_control_system()',
      );
      const [row] = rows;
      if (row === undefined || row.in_recovery) return { identity: '', inRecovery: true };
      const timeline = await query<{ timeline: string }>(
        'SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS timeline',
      );
      return { identity: `${row.system}/${timeline.rows[0]?.timeline}`, inRecovery: false };
    },

    hear: (payload, timeoutMs) =>
      new Promise((resolve) => {
        const timer = setTimeout(() => finish(false), timeoutMs);
        const finish = (heard: boolean) => {
          clearTimeout(timer);
          expected.delete(payload);
          resolve(heard);
        };
        expected.set(payload, () => finish(true));
        void lost.then(() => finish(false));
      }),

    async register(id, leaseMs) {
      const { rows } = await query<{ now: number }>(
        `INSERT INTO instances (id, lease_ms) VALUES ($1, $2) RETURNING ${NOW_MS} AS now`,
        [id, leaseMs],
      );
      return rows[0]?.now ?? Number.NaN;
    },

    async renew(id, timeoutMs) {
      const { rows } = await query<{ now: number }>(
        `UPDATE instances SET renewed_at = now() WHERE id = $1 AND NOT fenced AND NOT released RETURNING ${NOW_MS} AS now`,
        [id],
        timeoutMs,
      );
      return rows[0] === undefined ? 'refused' : { databaseMs: rows[0].now };
    },

    async acknowledge(id, batch) {
      const notifications = notificationsOf(id, batch);
      await query(
        `WITH stored AS (
           INSERT INTO acknowledgements (change_id, instance_id) SELECT unnest($2::uuid[]), $1 ON CONFLICT DO NOTHING
         )
         SELECT pg_notify(channel, payload) FROM unnest($3::text[], $4::text[]) AS notification (channel, payload)`,
        [
          id,
          batch.map(({ changeId }) => changeId),
          notifications.map(({ channel }) => channel),
          notifications.map(({ payload }) => payload),
        ],
      );
    },

    lost,
    async close() {
      // A goodbye, but no waiting for an answer to it: a connection that is half open never gives one.
      client.end().catch(() => undefined);
      await Promise.race([lost, sleep(GOODBYE_MS)]);
      socket.destroy();
    },
  };
}

/** One notification for each instance that waits, or several where its changes are too many for one. */
function notificationsOf(
  id: string,
  batch: readonly Acknowledgement[],
): { channel: string; payload: string }[] {
  const changesOf = new Map<string, string[]>();
  for (const { changeId, waiter } of batch) {
    if (waiter === null) continue;
    changesOf.set(waiter, [...(changesOf.get(waiter) ?? []), changeId]);
  }
  return [...changesOf].flatMap(([waiter, changeIds]) => {
    const notifications = [];
    for (let start = 0; start < changeIds.length; start += IDS_PER_NOTIFICATION) {
      const payload = [id, ...changeIds.slice(start, start + IDS_PER_NOTIFICATION)].join(' ');
      notifications.push({ channel: acknowledgementChannel(waiter), payload });
    }
    return notifications;
  });
}
