import { randomUUID } from 'node:crypto';
import { type AccessToken, holdsScope } from '../domain/access-token.ts';
import type { KeyId } from '../domain/key-id.ts';
import { isoTime } from '../domain/time.ts';
import { appendAuditEvent } from '../storage/audit.ts';
import type { Database, Executor } from '../storage/database.ts';
import { findKey, readDatabaseTime } from '../storage/keys.ts';
import { insertRevokedToken } from '../storage/revoked-tokens.ts';
import type { Changed, Membership } from '../verification/membership.ts';
import type { SigningKeys } from '../verification/signing-keys.ts';
import type { Authorization, Verifier } from '../verification/verifier.ts';
import type { Origin } from './audit.ts';

/** A client that asks for an access token of its key. */
export interface TokenRequest {
  readonly client: { readonly id: string; readonly token: string };
  readonly address: string;
  /** `undefined`: all scopes of the key. */
  readonly scopes: readonly string[] | undefined;
  readonly issuer: string;
}

export type Issuance =
  | {
      readonly issued: true;
      readonly jwt: string;
      readonly expiresInSeconds: number;
      readonly scopes: readonly string[];
    }
  | {
      readonly issued: false;
      readonly because: (Authorization & { authorized: false })['because'] | 'scope';
    };

/** Who may revoke an access token: whoever holds it, or, of those, its own client alone. */
export interface TokenHolder {
  readonly origin: Origin;
  /** The key that the client has shown to be its own; `null`: none, possession is enough. */
  readonly clientId: KeyId | null;
}

export interface AccessTokenLifecycle {
  /** Issues an access token that lives no longer than its key. Throws as a verification does. */
  issue(request: TokenRequest): Promise<Issuance>;
  /**
   * Revokes an access token by itself. When it resolves, that holds on every instance, also for one that was revoked
   * before. What is no access token of ours, or has expired, needs nothing done. Throws as a change does.
   *
   * @returns `foreign` for the token of another client, which stays as it was.
   */
  revoke(jwt: string, holder: TokenHolder): Promise<'done' | 'foreign'>;
}

export interface AccessTokenOptions {
  readonly database: Database;
  readonly membership: Pick<Membership, 'change'>;
  readonly verifier: Pick<Verifier, 'authorizeClient'>;
  readonly signingKeys: Pick<SigningKeys, 'sign' | 'verify'>;
  /** OAUTH_TOKEN_SECONDS. */
  readonly lifetimeSeconds: number;
}

export function createAccessTokenLifecycle({
  database,
  membership,
  verifier,
  signingKeys,
  lifetimeSeconds,
}: AccessTokenOptions): AccessTokenLifecycle {
  return {
    async issue({ client, address, scopes: requested, issuer }) {
      const authorization = await verifier.authorizeClient(client, address);
      if (!authorization.authorized) return { issued: false, because: authorization.because };
      const { key, catalogue, nowMs } = authorization;
      const scopes = requested ?? key.scopes;
      if (!scopes.every((scope) => holdsScope(key.scopes, scope, catalogue))) {
        return { issued: false, because: 'scope' };
      }
      const issuedAt = Math.floor(nowMs / 1000);
      const expiresAt = Math.min(
        issuedAt + lifetimeSeconds,
        key.expiresAt === null ? Number.POSITIVE_INFINITY : Math.floor(key.expiresAt / 1000),
      );
      // Of a key that has less than a second left there is nothing to give.
      if (expiresAt <= issuedAt) return { issued: false, because: 'expired' };
      const jwt = await signingKeys.sign(key, { jti: randomUUID(), scopes, issuedAt, expiresAt, issuer });
      return { issued: true, jwt, expiresInSeconds: expiresAt - issuedAt, scopes };
    },

    async revoke(jwt, { origin, clientId }) {
      const token = (await signingKeys.verify(jwt))?.token;
      if (token === undefined) return 'done';
      if (clientId !== null && clientId !== token.keyId) return 'foreign';
      if (token.expiresAt * 1000 <= (await database.read(readDatabaseTime))) return 'done';
      await membership.change((executor) => revokeToken(executor, token, origin), origin.requestId);
      return 'done';
    },
  };
}

/** A change of its key: by that road it reaches every instance (verification/access-tokens.ts). */
async function revokeToken(executor: Executor, token: AccessToken, origin: Origin): Promise<Changed<void>> {
  const { jti, keyId, expiresAt } = token;
  const isNew = await insertRevokedToken(executor, token);
  const key = isNew ? await findKey(executor, keyId) : undefined;
  if (key !== undefined) {
    await appendAuditEvent(
      executor,
      {
        action: 'token.revoked',
        actor: { keyId: null, source: 'oauth_revoke', address: origin.address, requestId: origin.requestId },
        workspaceId: key.workspaceId,
        keyId,
        target: jti,
        before: null,
        after: { expires_at: isoTime(expiresAt * 1000) },
      },
      await readDatabaseTime(executor),
    );
  }
  return { result: undefined, subject: { kind: 'key', id: keyId }, repeated: !isNew };
}
