import { randomBytes } from 'node:crypto';
import {
  type CompactJWSHeaderParameters,
  type CryptoKey,
  calculateJwkThumbprint,
  compactVerify,
  errors,
  exportJWK,
  generateKeyPair,
  importJWK,
  type JWK,
  SignJWT,
} from 'jose';
import { z } from 'zod';
import type { AccessToken } from '../domain/access-token.ts';
import type { Key } from '../domain/key.ts';
import { KEY_ID_PATTERN } from '../domain/key-id.ts';
import { seal, unseal } from '../domain/sealing.ts';
import { dueChange, signerAt } from '../domain/signing-schedule.ts';
import type { Database, Executor } from '../storage/database.ts';
import { readDatabaseTime } from '../storage/keys.ts';
import {
  deleteSigningKey,
  insertSigningKey,
  listSigningKeys,
  lockSigningKeys,
  replaceSeal,
  type StoredSigningKey,
} from '../storage/signing-keys.ts';

/*
 * The keys that access tokens are signed with. Memory holds all of them and reads them again every minute; which one
 * signs is worked out from the time (domain/signing-schedule.ts), so that nothing has to be switched. Who finds that a
 * key is due makes it, one instance at a time under a lock. A key that an instance has not heard of yet, since somebody
 * took the others away by hand, is looked for when it is met.
 *
 * Nothing is believed for standing in the table: a key counts when it opens under KEY_SECRET.
 */

const ALGORITHM = 'ES256';
/** RFC 9068 §2.1. */
const TYPE = 'at+jwt';
/** Far longer than a token with as many scopes as a key may have. */
const MAX_JWT_LENGTH = 16_384;
/** RFC 7515 §7.1. Decoders of base64url let white space pass, and a token has one spelling. */
const COMPACT = /^[\w-]+\.[\w-]+\.[\w-]+$/;
const REFRESH_EVERY_MS = 60_000;
/** However many unknown key ids are met: each is a string that somebody made up. */
const LOOK_EVERY_MS = 1_000;
const DAY_MS = 86_400_000;

const payloadSchema = z.object({
  jti: z.uuid(),
  client_id: z.string().regex(KEY_ID_PATTERN),
  scope: z.string().optional(),
  iat: z.int(),
  exp: z.int(),
});
const privateJwkSchema = z.object({
  kty: z.literal('EC'),
  crv: z.literal('P-256'),
  x: z.string(),
  y: z.string(),
  d: z.string(),
});

export interface SigningKeysOptions {
  readonly database: Database;
  /** Derived from each value of KEY_SECRET for the purpose `signing`: the first seals, all open. */
  readonly secrets: readonly [Uint8Array, ...Uint8Array[]];
  /** The id of the first value. */
  readonly secretId: number;
  readonly rotationDays: number;
  /** The time that the schedule goes by, in milliseconds: the database's. */
  readonly readTime?: (executor: Executor) => Promise<number>;
  report(event: { readonly message: string; readonly cause?: unknown }): void;
}

/** What an access token is made of, beside what its key says. */
export interface Issue extends Omit<AccessToken, 'keyId'> {
  readonly issuer: string;
}

/** A token whose signature holds, and which key that is by. */
export interface Signed {
  readonly token: AccessToken;
  readonly kid: string;
}

/** A public key as the key set shows it. */
export interface PublicJwk {
  readonly kty: 'EC';
  readonly crv: 'P-256';
  readonly x: string;
  readonly y: string;
  readonly kid: string;
  readonly alg: typeof ALGORITHM;
  readonly use: 'sig';
}

export interface SigningKeys {
  /** Refreshes now and every minute; resolves once this instance can sign. */
  start(): Promise<void>;
  stop(): void;
  /** Does what is due: makes a key, deletes those that are gone, seals with the newest secret. Then reads all. */
  refresh(): Promise<void>;
  /** The JWT of a key, signed by the signing key whose turn it is. */
  sign(key: Key, issue: Issue): Promise<string>;
  /** What a string says that one of these keys has signed as an access token; `undefined` for any other. */
  verify(jwt: string): Promise<Signed | undefined>;
  /** Whether what this key signed is still believed. */
  has(kid: string): boolean;
  /** The public keys, also of those whose turn is to come (RFC 7517 §5). */
  publicKeys(): readonly PublicJwk[];
}

interface SigningKey {
  readonly kid: string;
  readonly signsFrom: number;
  readonly privateKey: CryptoKey;
  readonly publicKey: CryptoKey;
  readonly publicJwk: PublicJwk;
}

export function createSigningKeys(options: SigningKeysOptions): SigningKeys {
  const { database, secrets, secretId, rotationDays, readTime = readDatabaseTime, report } = options;
  const [newest] = secrets;
  /** In the order of their turns. */
  let keys: readonly SigningKey[] = [];
  let refreshing: Promise<void> | undefined;
  let refreshedAt = Number.NEGATIVE_INFINITY;
  let timer: NodeJS.Timeout | undefined;

  /** The text of a stored key, by whichever secret opens it. */
  function open({ kid, sealed }: StoredSigningKey): string | undefined {
    for (const key of secrets) {
      try {
        return unseal(sealed, { key, context: kid });
      } catch {
        // Sealed with another one.
      }
    }
    return undefined;
  }

  async function keyOf(stored: StoredSigningKey): Promise<SigningKey | undefined> {
    const { kid, signsFrom } = stored;
    const known = keys.find((key) => key.kid === kid);
    if (known !== undefined) return { ...known, signsFrom };
    const text = open(stored);
    if (text === undefined) {
      report({ message: `the signing key ${kid} does not open with any value of KEY_SECRET` });
      return undefined;
    }
    const { d, ...publicJwk } = privateJwkSchema.parse(JSON.parse(text));
    return {
      kid,
      signsFrom,
      privateKey: await importKey({ ...publicJwk, d }),
      publicKey: await importKey(publicJwk),
      publicJwk: { ...publicJwk, kid, alg: ALGORITHM, use: 'sig' },
    };
  }

  async function refreshOnce(): Promise<void> {
    refreshedAt = performance.now();
    const stored = await database.read(listSigningKeys);
    const isDue = changesOf(stored, await database.read(readTime)).length > 0;
    const kept = isDue ? await database.transaction(keep) : stored;
    keys = (await Promise.all(kept.map(keyOf))).filter((key) => key !== undefined);
  }

  function refresh(): Promise<void> {
    refreshing ??= refreshOnce().finally(() => {
      refreshing = undefined;
    });
    return refreshing;
  }

  /** What is due, as steps of one transaction. */
  function changesOf(
    stored: readonly StoredSigningKey[],
    nowMs: number,
  ): ((executor: Executor) => Promise<void>)[] {
    const { next, gone } = dueChange(stored, { nowMs, periodMs: rotationDays * DAY_MS });
    const foreign = stored.filter((key) => key.secretId !== secretId && !gone.includes(key));
    return [
      ...gone.map(
        ({ kid }) =>
          (executor: Executor) =>
            deleteSigningKey(executor, kid),
      ),
      ...foreign.flatMap((key) => {
        const text = open(key);
        return text === undefined ? [] : (executor: Executor) => replaceSeal(executor, sealed(key.kid, text));
      }),
      ...(next === undefined ? [] : [(executor: Executor) => makeKey(executor, next)]),
    ];
  }

  async function keep(executor: Executor): Promise<StoredSigningKey[]> {
    await lockSigningKeys(executor);
    // Another instance may have been first.
    const stored = await listSigningKeys(executor);
    for (const change of changesOf(stored, await readTime(executor))) await change(executor);
    return listSigningKeys(executor);
  }

  async function makeKey(executor: Executor, signsFrom: number): Promise<void> {
    const { privateKey } = await generateKeyPair(ALGORITHM, { extractable: true });
    const jwk = await exportJWK(privateKey);
    const kid = await calculateJwkThumbprint(jwk);
    await insertSigningKey(executor, {
      ...sealed(kid, JSON.stringify(jwk)),
      signsFrom: Math.floor(signsFrom),
    });
  }

  function sealed(kid: string, text: string) {
    return { kid, secretId, sealed: seal(text, { key: newest, context: kid }, randomBytes) };
  }

  /** The public key that a JWT names. */
  async function find({ kid }: CompactJWSHeaderParameters): Promise<CryptoKey> {
    const named = () => keys.find((key) => key.kid === kid)?.publicKey;
    const mayLook = refreshing !== undefined || performance.now() - refreshedAt >= LOOK_EVERY_MS;
    if (named() === undefined && mayLook) await refresh();
    const found = named();
    if (found === undefined) throw new errors.JWKSNoMatchingKey();
    return found;
  }

  return {
    async start() {
      await refresh();
      // A failure is no news: a database that is away is told of by everybody else, and the keys are as they were.
      timer = setInterval(() => void refresh().catch(() => undefined), REFRESH_EVERY_MS).unref();
    },

    stop() {
      clearInterval(timer);
    },

    refresh,

    async sign(key, { jti, scopes, issuedAt, expiresAt, issuer }) {
      const signer = signerAt(keys, issuedAt * 1000);
      if (signer === undefined) throw new TypeError('there is no signing key');
      return new SignJWT({
        client_id: key.id,
        workspace_id: key.workspaceId,
        environment: key.environment,
        // RFC 6749 §3.3: a scope names one at least.
        ...(scopes.length === 0 ? {} : { scope: scopes.join(' ') }),
      })
        .setProtectedHeader({ alg: ALGORITHM, typ: TYPE, kid: signer.kid })
        .setIssuer(issuer)
        .setAudience(issuer)
        .setSubject(key.id)
        .setJti(jti)
        .setIssuedAt(issuedAt)
        .setExpirationTime(expiresAt)
        .sign(signer.privateKey);
    },

    async verify(jwt) {
      if (jwt.length > MAX_JWT_LENGTH || !COMPACT.test(jwt)) return undefined;
      try {
        const { payload, protectedHeader } = await compactVerify(jwt, find, { algorithms: [ALGORITHM] });
        if (protectedHeader.typ !== TYPE || protectedHeader.kid === undefined) return undefined;
        const { success, data: claims } = payloadSchema.safeParse(
          JSON.parse(new TextDecoder().decode(payload)),
        );
        if (!success) return undefined;
        return {
          kid: protectedHeader.kid,
          token: {
            jti: claims.jti,
            keyId: claims.client_id,
            scopes: claims.scope?.split(' ') ?? [],
            issuedAt: claims.iat,
            expiresAt: claims.exp,
          },
        };
      } catch (error) {
        if (error instanceof errors.JOSEError) return undefined;
        throw error;
      }
    },

    has: (kid) => keys.some((key) => key.kid === kid),
    publicKeys: () => keys.map(({ publicJwk }) => publicJwk),
  };
}

async function importKey(jwk: JWK): Promise<CryptoKey> {
  const key = await importJWK(jwk, ALGORITHM);
  if (key instanceof Uint8Array) throw new TypeError('a symmetric key cannot sign access tokens');
  return key;
}
