import { randomBytes } from 'node:crypto';
import argon2 from 'argon2';
import { keyIdToUuid, newKeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { KEY_SECRET } from '../harness.ts';

const mint = createTokenMint([keySecret(KEY_SECRET).derive('mint')], randomBytes);

/** Tokens with the right tag for `KEY_SECRET`, each with the row that makes it a key, hashed with the default parameters. */
export async function makeKeys(count: number): Promise<{ tokens: string[]; insert: string }> {
  const tokens: string[] = [];
  const rows: string[] = [];
  for (let index = 0; index < count; index++) {
    const nowMs = Date.now();
    const id = newKeyId(nowMs);
    const token = mint.mint({ prefix: 'ck', environment: 'live', id });
    const hash = await argon2.hash(token, {
      type: argon2.argon2id,
      memoryCost: 19456,
      timeCost: 2,
      parallelism: 1,
    });
    tokens.push(token);
    rows.push(
      `('${keyIdToUuid(id)}', 'ws_bench', 'live', 'Bench', 'ck_live_', '${token.slice(-4)}', '${hash}', (SELECT min(id) FROM key_secrets), '{read}', '${new Date(nowMs).toISOString()}')`,
    );
  }
  const insert = `INSERT INTO workspaces VALUES ('ws_bench') ON CONFLICT DO NOTHING;
    INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at) VALUES ${rows.join(',')}`;
  return { tokens, insert };
}

/** Tokens of the right form and checksum that another deployment minted. */
export function unmintedTokens(count: number): string[] {
  const other = createTokenMint(
    [keySecret('the-secret-of-quite-another-deployment').derive('mint')],
    randomBytes,
  );
  return Array.from({ length: count }, () =>
    other.mint({ prefix: 'ck', environment: 'live', id: newKeyId(Date.now()) }),
  );
}
