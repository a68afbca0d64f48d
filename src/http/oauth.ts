import { isUtf8 } from 'node:buffer';
import type { FastifyError, FastifyInstance } from 'fastify';
import type { Logger } from 'pino';
import { bodyParser, checkText } from './body.ts';
import { invalidRequest, OAuthError, oauthErrorOf, sendOAuthError } from './oauth-errors.ts';
import { createErrorHandler } from './problem.ts';

export const FORM = 'application/x-www-form-urlencoded';
const OTHER_METHODS = ['GET', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];
const MALFORMED_ESCAPE = /%(?![0-9A-Fa-f]{2})/;
const BEARER = /^bearer( |$)/i;
const REPLACEMENT = '\uFFFD';

/**
 * Registers OAuth endpoints: they take forms by POST alone, and whatever goes wrong is an error of RFC 6749 §5.2.
 *
 * @param urls of these endpoints.
 */
export function registerOAuthScope(
  app: FastifyInstance,
  { urls, logger }: { readonly urls: readonly string[]; readonly logger: Logger },
  routes: (scope: FastifyInstance) => void,
): void {
  app.register(async (scope) => {
    const handleFailure = createErrorHandler(logger, (request, reply, failure) =>
      sendOAuthError(
        reply,
        oauthErrorOf(failure, { isBearer: BEARER.test(request.headers.authorization ?? '') }),
      ),
    );
    scope.setErrorHandler<FastifyError>((error, request, reply) =>
      error instanceof OAuthError ? sendOAuthError(reply, error) : handleFailure(error, request, reply),
    );
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser(FORM, { parseAs: 'buffer' }, bodyParser(parseForm));
    scope.addHook('onRequest', (_request, reply, done) => {
      // RFC 6749 §5.1; `Cache-Control: no-store` is on every answer.
      reply.header('pragma', 'no-cache');
      done();
    });
    for (const url of urls) {
      scope.route({
        method: OTHER_METHODS,
        url,
        schema: { hide: true },
        // Before the body, which may be of any kind.
        onRequest: (_request, _reply, done) => done(wrongMethod()),
        handler: () => {
          throw wrongMethod();
        },
      });
    }
    routes(scope);
  });
}

function wrongMethod(): OAuthError {
  return new OAuthError(405, 'invalid_request', 'This endpoint takes POST alone.', { allow: 'POST' });
}

function parseForm(body: Buffer): URLSearchParams {
  if (!isUtf8(body)) throw invalidRequest('The body is not UTF-8.');
  const text = body.toString('utf8');
  if (MALFORMED_ESCAPE.test(text)) throw invalidRequest('The body holds a malformed percent-encoding.');
  const parameters = new URLSearchParams(text);
  const decoded = [...parameters].flat().join('');
  if (decoded.includes(REPLACEMENT)) throw invalidRequest('The body holds what is not UTF-8.');
  checkText(decoded);
  return parameters;
}

/**
 * The parameters of these names. Others are ignored; one without a value counts as left out, and none may be there
 * twice (RFC 6749 §3.2).
 */
export function readForm<Name extends string>(
  body: unknown,
  names: readonly Name[],
): Readonly<Partial<Record<Name, string>>> {
  const found: Partial<Record<Name, string>> = {};
  if (!(body instanceof URLSearchParams)) return found;
  for (const name of names) {
    const [value, ...others] = body.getAll(name);
    if (others.length > 0) throw invalidRequest(`The parameter ${name} is there twice.`);
    if (value !== undefined && value !== '') found[name] = value;
  }
  return found;
}
