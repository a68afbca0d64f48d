import { createPublicKey, type KeyObject } from 'node:crypto';
import { z } from 'zod';

/*
 * The public keys that GitHub signs its reports of leaks with: from a file, or from where GitHub publishes them.
 *
 * What was fetched is good for a day, and beyond it as long as nothing newer can be had. An id that is not among it is
 * a reason to fetch again, but anybody can send one: so not before a while has passed.
 */

export interface GithubKeys {
  /** The key of this id, fetched where that is allowed and may help. */
  find(id: string): Promise<KeyObject | undefined>;
}

export interface GithubKeysOptions {
  /** Keys that are always good, in the form of GitHub's own list. */
  readonly listed: ReadonlyMap<string, KeyObject>;
  /** Where the list is fetched; `undefined`: nowhere. */
  readonly url: string | undefined;
  /** Told of a list that could not be fetched. */
  report(event: { readonly message: string; readonly cause?: unknown }): void;
  /** Monotonic time in milliseconds. */
  readonly now?: () => number;
}

const GOOD_FOR_MS = 24 * 60 * 60 * 1000;
/** GitHub answers 60 requests an hour that show no token of its own. */
const FETCH_EVERY_MS = 2 * 60 * 1000;
const FETCH_WITHIN_MS = 5_000;
const MAX_LIST_BYTES = 256 * 1024;
const MAX_KEYS = 100;

const listSchema = z.object({
  public_keys: z
    .array(z.object({ key_identifier: z.string().min(1).max(128), key: z.string() }))
    .max(MAX_KEYS),
});

/**
 * Reads GitHub's list of keys. What is no key of ECDSA on P-256, which is what GitHub signs with, is left out.
 * @throws where it is no such list, or has no such key.
 */
export function readGithubKeys(text: string): ReadonlyMap<string, KeyObject> {
  const keys = new Map<string, KeyObject>();
  for (const { key_identifier, key } of listSchema.parse(JSON.parse(text)).public_keys) {
    const read = publicKeyOf(key);
    if (read !== undefined) keys.set(key_identifier, read);
  }
  if (keys.size === 0) throw new Error('the list has no key that GitHub could sign with');
  return keys;
}

function publicKeyOf(pem: string): KeyObject | undefined {
  try {
    const key = createPublicKey(pem);
    return key.asymmetricKeyDetails?.namedCurve === 'prime256v1' ? key : undefined;
  } catch {
    return undefined;
  }
}

export function createGithubKeys({
  listed,
  url,
  report,
  now = () => performance.now(),
}: GithubKeysOptions): GithubKeys {
  let fetched: ReadonlyMap<string, KeyObject> = new Map();
  let fetchedAt = Number.NEGATIVE_INFINITY;
  let triedAt = Number.NEGATIVE_INFINITY;
  let flight: Promise<void> | undefined;

  async function refresh(from: string): Promise<void> {
    triedAt = now();
    try {
      fetched = readGithubKeys(await fetchText(from));
      fetchedAt = now();
    } catch (cause) {
      report({ message: 'the public keys of GITHUB_KEYS_URL could not be fetched', cause });
    } finally {
      flight = undefined;
    }
  }

  return {
    async find(id) {
      const known = listed.get(id);
      if (known !== undefined || url === undefined) return known;
      const isGood = fetched.has(id) && now() - fetchedAt < GOOD_FOR_MS;
      if (!isGood && flight === undefined && now() - triedAt >= FETCH_EVERY_MS) flight = refresh(url);
      if (!isGood) await flight;
      return fetched.get(id);
    },
  };
}

async function fetchText(url: string): Promise<string> {
  const response = await fetch(url, {
    headers: { accept: 'application/json', 'user-agent': 'claviger' },
    redirect: 'error',
    signal: AbortSignal.timeout(FETCH_WITHIN_MS),
  });
  if (!response.ok || response.body === null) throw new Error(`the answer has the status ${response.status}`);
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body) {
    bytes += chunk.length;
    if (bytes > MAX_LIST_BYTES) throw new Error('the answer is too long for a list of keys');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}
