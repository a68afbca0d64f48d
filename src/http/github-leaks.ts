import { hash, type KeyObject, verify } from 'node:crypto';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { z } from 'zod';
import { Failure } from '../domain/errors.ts';
import type { JsonObject } from '../domain/key.ts';
import type { TokenRevocation } from '../lifecycle/token-revocation.ts';
import { bodyParser, parseJson } from './body.ts';
import type { Callers } from './callers.ts';
import type { GithubKeys } from './github-keys.ts';
import { originOf } from './keys.ts';
import { LEAKED } from './leaks.ts';
import * as schemas from './schemas.ts';
import { parseInput } from './validation.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** The key that the request says it is signed with; set before its body is read. */
    githubKey: KeyObject | null;
  }
}

/** GitHub gathers what it found in one push. */
const BODY_LIMIT_BYTES = 1024 * 1024;
const MAX_MATCHES = 5_000;
const MAX_TEXT_LENGTH = 4_096;
const KEY_ID_HEADER = 'github-public-key-identifier';
const SIGNATURE_HEADER = 'github-public-key-signature';
const MAX_KEY_ID_LENGTH = 128;
/** An ECDSA signature on P-256 in DER has 72 bytes at most. */
const SIGNATURE = /^[A-Za-z0-9+/]{8,96}={0,2}$/;

const MAX_PLACE_LENGTH = 500;
/** What is as long as a token without its prefix may be one; the longest hash in an address is shorter. */
const MAY_BE_SECRET = /[0-9A-Za-z]{65}/;

/** GitHub may add members: they are ignored. */
const matches = z
  .array(
    z
      .object({
        token: z.string().max(MAX_TEXT_LENGTH).describe('What matched.'),
        type: z.string().max(200).describe('The name under which the expression was registered with GitHub.'),
        url: z.string().max(MAX_TEXT_LENGTH).nullish().describe('Where it was found; may be empty.'),
        source: z.string().max(200).nullish().describe('In what it was found, such as `commit`.'),
      })
      .meta({ id: 'GithubMatch', description: 'What GitHub found.' }),
  )
  .min(1)
  .max(MAX_MATCHES)
  .describe('What GitHub found.');

const labels = z
  .array(
    z
      .object({
        token_hash: z.string().describe('SHA-256 of `token`, in hexadecimal.'),
        token_type: z.string().describe('`type`, as it came.'),
        label: z
          .enum(['true_positive', 'false_positive'])
          .describe('Whether it is a token of this deployment.'),
      })
      .meta({ id: 'GithubLabel', description: 'What became of a match.' }),
  )
  .describe('A label for each match, in their order.');

const header = (description: string) => ({ type: 'string', description });
const documentedHeaders = {
  type: 'object',
  required: ['Github-Public-Key-Identifier', 'Github-Public-Key-Signature'],
  properties: {
    'Github-Public-Key-Identifier': header('Which of its keys GitHub signed with.'),
    'Github-Public-Key-Signature': header(
      'ECDSA on P-256 with SHA-256 over the body as it was sent: DER, in Base64.',
    ),
  },
};

/** `POST /v1/leaks/github`: the endpoint of GitHub's secret scanning partner program. */
export function registerGithubLeakRoute(
  app: FastifyInstance,
  {
    callers,
    tokenRevocation,
    githubKeys,
  }: {
    callers: Callers;
    tokenRevocation: TokenRevocation;
    /** `undefined`: no keys are configured. */
    githubKeys: GithubKeys | undefined;
  },
): void {
  app.decorateRequest('githubKey', null);
  app.register(async (scope) => {
    // The signature is over the bytes as they came: they are parsed once it holds.
    scope.removeContentTypeParser('application/json');
    scope.addContentTypeParser(
      'application/json',
      { parseAs: 'buffer' },
      bodyParser((body) => body),
    );

    scope.addHook('onRequest', async (request, reply) => {
      if (githubKeys === undefined) {
        throw new Failure('not_found', 'This deployment has no keys of GitHub to check its reports by.');
      }
      const id = headerOf(request, KEY_ID_HEADER);
      const known = id.length >= 1 && id.length <= MAX_KEY_ID_LENGTH ? await githubKeys.find(id) : undefined;
      if (known === undefined || !SIGNATURE.test(headerOf(request, SIGNATURE_HEADER))) {
        await callers.countFailure(request, reply);
        throw notOfGithub();
      }
      request.githubKey = known;
    });

    scope.post(
      '/v1/leaks/github',
      {
        bodyLimit: BODY_LIMIT_BYTES,
        schema: {
          tags: ['Leaks'],
          operationId: 'reportGithubLeaks',
          summary: "GitHub's report of leaked tokens",
          description:
            "For GitHub's secret scanning partner program: its signature over the body stands for a service key. Keys whose tokens are among the matches are revoked with the reason `leaked` when this answers, as `POST /v1/leaks` does it. The answer is the feedback that GitHub takes.",
          security: [],
          documentedHeaders,
          documentedBody: { content: { 'application/json': { schema: matches } } },
          response: {
            200: labels,
            ...schemas.problems({
              ...schemas.BARE_PROBLEMS,
              400: schemas.CALLER_PROBLEMS[400],
              401: 'Not signed by a key of GitHub (`unauthorized`).',
              404: 'This deployment has no keys of GitHub (`not_found`).',
              429: 'Too many failures from this address (`rate_limited`).',
              503: 'The report was not dealt with to its end: repeat it (`overloaded`, `unavailable`).',
              413: 'The body is larger than 1024 KiB (`payload_too_large`).',
              415: schemas.BODY_PROBLEMS[415],
            }),
          },
        },
      },
      async (request, reply): Promise<z.input<typeof labels>> => {
        const raw = request.body;
        if (!Buffer.isBuffer(raw) || !isSigned(raw, request)) {
          await callers.countFailure(request, reply);
          throw notOfGithub();
        }
        const found = parseInput(matches, parseJson(raw));
        const urls = new Map(found.map(({ token, url }) => [token, url]));
        const tokens = await tokenRevocation.revokeTokens(
          found.map(({ token }) => token),
          {
            source: 'github',
            reason: LEAKED,
            origin: originOf(request),
            about: (token): JsonObject => ({ found_at: placeOf(urls.get(token)) }),
          },
        );
        return found.map(({ token, type }) => ({
          token_hash: hash('sha256', token),
          token_type: type,
          label: tokens.has(token) ? ('true_positive' as const) : ('false_positive' as const),
        }));
      },
    );
  });
}

function isSigned(body: Buffer, request: FastifyRequest): boolean {
  const signature = Buffer.from(headerOf(request, SIGNATURE_HEADER), 'base64');
  return request.githubKey !== null && verify('sha256', body, request.githubKey, signature);
}

function headerOf(request: FastifyRequest, name: string): string {
  const value = request.headers[name];
  return typeof value === 'string' ? value : '';
}

function notOfGithub(): Failure {
  return new Failure('unauthorized', 'The report is not signed by a key of GitHub that is known here.');
}

/** An address as the audit trail keeps it: without what a secret could stand in. `null` where that cannot be told. */
export function placeOf(url: string | null | undefined): string | null {
  if (url == null || url.length > MAX_PLACE_LENGTH || !URL.canParse(url)) return null;
  const { protocol, host, pathname } = new URL(url);
  if (protocol !== 'https:') return null;
  const path = decoded(pathname);
  return path === undefined || MAY_BE_SECRET.test(path) ? null : `https://${host}${pathname}`;
}

function decoded(path: string): string | undefined {
  try {
    return decodeURIComponent(path);
  } catch {
    return undefined;
  }
}
