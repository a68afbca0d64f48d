import type { FastifyInstance } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { reaches } from '../domain/caller.ts';
import { type Decision, REFUSALS } from '../domain/decision.ts';
import { Failure, invalidInput } from '../domain/errors.ts';
import { foreignWorkspace } from '../lifecycle/keys.ts';
import type { Verifier } from '../verification/verifier.ts';
import { checkText } from './body.ts';
import { type Callers, callerOf } from './callers.ts';
import * as schemas from './schemas.ts';

const FORM = 'application/x-www-form-urlencoded';
const MAX_COST = 10_000;
/** Whatever a client sent as its key gets a verdict, so that the body's own bound is the only one. */
const MAX_KEY_LENGTH = 65_536;
const MAX_URL_LENGTH = 8_192;

const fact = (most: number) =>
  z.string().max(most, `must have at most ${most} characters`).nullable().optional();

const jsonBody = z.strictObject({
  key: z.string().max(MAX_KEY_LENGTH).optional().describe('The token that the client sent. Alias: `token`.'),
  token: z.string().max(MAX_KEY_LENGTH).optional(),
  scopes: schemas.scopes.optional().describe('All of these are needed.'),
  workspace_id: schemas.workspaceId.optional().describe('The workspace that the key is expected to be of.'),
  environment: schemas.environment.optional().describe('The environment that the key is expected to be of.'),
  cost: z
    .int()
    .min(0)
    .max(MAX_COST)
    .optional()
    .describe('What this use counts against the rate limit; 0 spends nothing.'),
  request: z
    .strictObject({
      ip: fact(64),
      method: fact(32),
      path: fact(MAX_URL_LENGTH),
      referrer: fact(MAX_URL_LENGTH),
    })
    .optional()
    .describe('The request that the client made, for the restrictions of its key.'),
});

/** RFC 7662 §2.1; parameters that are not known here are ignored (RFC 6749 §3.2). */
const formBody = z.object({ token: z.string() });

const activeOutput = z.object({
  active: z.literal(true),
  key_id: z.string(),
  workspace_id: z.string(),
  name: z.string(),
  environment: z.string(),
  scopes: z.array(z.string()),
  created_at: schemas.timeOutput,
  expires_at: schemas.timeOutput.nullable(),
  metadata: schemas.metadataOutput.nullable(),
});

const REFUSAL_CODES = Object.keys(REFUSALS) as [keyof typeof REFUSALS, ...(keyof typeof REFUSALS)[]];

const inactiveOutput = z.object({
  active: z.literal(false),
  reason: z.object({
    code: z.enum(REFUSAL_CODES),
    status: z.int().describe('What the asking service should answer its own client.'),
    detail: z.string(),
  }),
});

const standardOutput = z
  .object({
    active: z.boolean(),
    scope: z.string().optional(),
    client_id: z.string().optional(),
    sub: z.string().optional(),
    token_type: z.literal('Bearer').optional(),
    exp: z.int().optional(),
    iat: z.int().optional(),
  })
  .describe('RFC 7662 §2.2, the answer to a form.');

type JsonAnswer = z.input<typeof activeOutput> | z.input<typeof inactiveOutput>;
type StandardAnswer = z.input<typeof standardOutput>;

/** `POST /v1/introspect` (contract §5). */
export function registerIntrospectRoute({
  callers,
  verifier,
}: {
  callers: Callers;
  verifier: Verifier;
}): void {
  callers.scope('introspect', 'introspection', (plain) => {
    registerFormBody(plain);
    plain.withTypeProvider<ZodTypeProvider>().post(
      '/v1/introspect',
      {
        schema: {
          tags: ['Introspection'],
          operationId: 'introspect',
          summary: 'May this key do this?',
          description: '200 whenever a verdict was reached. `active` is the one member to test.',
          body: { content: { 'application/json': { schema: jsonBody }, [FORM]: { schema: formBody } } },
          response: {
            200: z.union([activeOutput, inactiveOutput, standardOutput]),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...schemas.BODY_PROBLEMS }),
          },
        },
      },
      async (request): Promise<JsonAnswer | StandardAnswer> => {
        const caller = callerOf(request);
        const visibleWorkspaces = caller.allowedWorkspaces;
        if (isForm(request.headers['content-type'])) {
          const { token } = formBody.parse(request.body);
          return standardAnswer(await verifier.verify(token, { visibleWorkspaces }));
        }
        const {
          key,
          token,
          scopes,
          workspace_id: workspaceId,
          environment,
          request: facts,
        } = jsonBody.parse(request.body);
        if ((key === undefined) === (token === undefined)) {
          throw invalidInput({ path: 'key', message: 'send the key in `key` or in `token`, one of them' });
        }
        if (workspaceId !== undefined && !reaches(caller, workspaceId)) throw foreignWorkspace(workspaceId);
        return jsonAnswer(
          await verifier.verify(key ?? token ?? '', {
            visibleWorkspaces,
            scopes,
            workspaceId,
            environment,
            request: facts,
          }),
        );
      },
    );
  });
}

function isForm(contentType: string | undefined): boolean {
  return contentType?.toLowerCase().startsWith(FORM) === true;
}

function registerFormBody(app: FastifyInstance): void {
  app.addContentTypeParser(FORM, { parseAs: 'string' }, (_request, body, done) => {
    const tokens = new URLSearchParams(body.toString()).getAll('token');
    const [token] = tokens;
    if (token === undefined || tokens.length > 1) {
      done(new Failure('invalid_request', 'The form must hold one `token`.'));
      return;
    }
    try {
      checkText(token);
      done(null, { token });
    } catch (error) {
      done(error instanceof Error ? error : new Error('unreadable form'));
    }
  });
}

function jsonAnswer(decision: Decision): JsonAnswer {
  if (!decision.active) {
    const { code, detail } = decision;
    return { active: false, reason: { code, status: REFUSALS[code], detail } };
  }
  const { key } = decision.record;
  return {
    active: true,
    key_id: key.id,
    workspace_id: key.workspaceId,
    name: key.name,
    environment: key.environment,
    scopes: [...key.scopes],
    created_at: schemas.fromTime(key.createdAt),
    expires_at: schemas.fromTime(key.expiresAt),
    metadata: key.metadata === null ? null : { ...key.metadata },
  };
}

/** RFC 7662 §2.2: an inactive token gets nothing but that. */
function standardAnswer(decision: Decision): StandardAnswer {
  if (!decision.active) return { active: false };
  const { key } = decision.record;
  return {
    active: true,
    scope: key.scopes.join(' '),
    client_id: key.id,
    sub: key.workspaceId,
    token_type: 'Bearer',
    iat: seconds(key.createdAt),
    ...(key.expiresAt === null ? {} : { exp: seconds(key.expiresAt) }),
  };
}

function seconds(timeMs: number): number {
  return Math.floor(timeMs / 1000);
}
