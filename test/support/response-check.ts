import { Ajv2020, type ErrorObject } from 'ajv/dist/2020.js';
import formats from 'ajv-formats';
import { readDocument } from '../../src/openapi.ts';
import type { Answer } from './client.ts';

/*
 * Holds every response that a test sees against the OpenAPI document: the operation, the status, the media type,
 * the headers, the body, and of an error its code.
 */

/** Throws where the document does not allow this answer to this request. */
export type ResponseCheck = (method: string, path: string, answer: Answer) => void;

type Json = Record<string, unknown>;

interface ResponseObject {
  readonly headers?: Readonly<Record<string, { readonly $ref: string }>>;
  readonly content?: Readonly<Record<string, { readonly schema: Json; readonly examples?: Json }>>;
}

interface Operation {
  readonly template: string;
  readonly method: string;
  readonly pattern: RegExp;
  readonly responses: Readonly<Record<string, ResponseObject>>;
}

interface Header {
  readonly required?: boolean;
  readonly schema: { readonly type: string; readonly minLength?: number };
}

interface Document {
  readonly paths: Record<string, Record<string, { responses: Record<string, ResponseObject> }>>;
  readonly components: { headers: Record<string, Header>; schemas: Record<string, Json> };
}

const ID = 'openapi';
const PROBLEM_TYPE = 'application/problem+json';
/** The documentation itself. */
const UNDOCUMENTED = /^\/(openapi\.json|docs(\/.*)?)$/;
/** Any method, and any path below: the document has it once. */
const FOR_GATEWAYS = /^\/v1\/authorize(?:$|\/)/;
/** What is answered where no route is: the body is read before that is known. */
const NO_ROUTE = [400, 404, 413, 415, 429, 503];
/** OAuth endpoints answer another method than POST themselves. */
const OAUTH_ENDPOINT = /^\/oauth\/(token|introspect|revoke)$/;

let loaded: Promise<ResponseCheck> | undefined;

/** The check, made once for each test file from the source, so that it is never older than the routes. */
export function loadResponseCheck(): Promise<ResponseCheck> {
  loaded ??= readDocument().then((document) => createResponseCheck(document));
  return loaded;
}

export function createResponseCheck(source: object): ResponseCheck {
  const document: Document = JSON.parse(JSON.stringify(source));
  for (const schema of Object.values(document.components.schemas)) refuseUndeclared(schema);
  const operations = Object.entries(document.paths).flatMap(([template, path]) =>
    Object.entries(path).map(([method, { responses }]): Operation => {
      for (const { content = {} } of Object.values(responses)) {
        for (const { schema } of Object.values(content)) refuseUndeclared(schema);
      }
      return { template, method: method.toUpperCase(), pattern: patternOf(template), responses };
    }),
  );
  // Not strict: OpenAPI's own keywords stand beside those of JSON Schema.
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  formats.default(ajv);
  ajv.addSchema(document, ID);

  function validate(pointer: readonly string[], value: unknown): string[] {
    const reference = `${ID}#/${pointer.map(escapePointer).join('/')}`;
    const validator = ajv.getSchema(reference);
    if (validator === undefined) throw new Error(`there is no schema at ${reference}`);
    return validator(value) === true ? [] : (validator.errors ?? []).map(faultText);
  }

  function checkOperation(
    { template, method, responses }: Operation,
    answer: Answer,
    bare: boolean,
  ): string[] {
    const response = responses[answer.status];
    if (response === undefined) return [`the status ${answer.status} is not declared`];
    const faults = Object.entries(response.headers ?? {}).flatMap(([name, { $ref }]) =>
      headerFaults(name, document.components.headers[$ref.split('/').at(-1) ?? ''], answer),
    );
    if (bare) return faults;
    if (Object.keys(response.content ?? {}).length === 0) {
      return answer.text === '' ? faults : [...faults, 'it has a body'];
    }
    const type = mediaType(answer);
    const media = response.content?.[type];
    if (media === undefined) return [...faults, `the media type "${type}" is not declared`];
    const pointer = ['paths', template, method.toLowerCase(), 'responses', String(answer.status)];
    faults.push(...validate([...pointer, 'content', type, 'schema'], answer.body));
    if (type === PROBLEM_TYPE) {
      faults.push(...problemFaults(answer));
      if (!Object.keys(media.examples ?? {}).includes(answer.body.code))
        faults.push(`the code "${answer.body.code}" is not declared`);
    }
    return faults;
  }

  function checkNoRoute(path: string, answer: Answer, bare: boolean): string[] {
    if (OAUTH_ENDPOINT.test(path)) {
      if (answer.status !== 405) return ['it is no 405'];
      return bare ? [] : validate(['components', 'schemas', 'OAuthError'], answer.body);
    }
    if (!NO_ROUTE.includes(answer.status)) return [`the document has no such route, but it answered`];
    if (bare) return [];
    if (mediaType(answer) !== PROBLEM_TYPE) return ['it is not a problem'];
    return [...validate(['components', 'schemas', 'Problem'], answer.body), ...problemFaults(answer)];
  }

  return (method, target, answer) => {
    const path = pathOf(target);
    if (UNDOCUMENTED.test(path)) return;
    const bare = method === 'HEAD';
    const isForGateways = FOR_GATEWAYS.test(path);
    const wanted = bare || isForGateways ? 'GET' : method;
    const template = isForGateways ? '/v1/authorize' : path;
    const operation = operations.find((one) => one.method === wanted && one.pattern.test(template));
    const faults =
      operation === undefined ? checkNoRoute(path, answer, bare) : checkOperation(operation, answer, bare);
    if (faults.length > 0) {
      throw new Error(
        `${method} ${path} answered ${answer.status} against openapi.yaml:\n  ${faults.join('\n  ')}\n${answer.text}`,
      );
    }
  };
}

function headerFaults(name: string, header: Header | undefined, { headers }: Answer): string[] {
  if (header === undefined) return [`the header ${name} has no component`];
  const value = headers[name.toLowerCase()];
  if (value === undefined) return header.required === true ? [`the header ${name} is missing`] : [];
  const valid =
    header.schema.type === 'integer' ? /^\d+$/.test(value) : value.length >= (header.schema.minLength ?? 1);
  return valid ? [] : [`the header ${name} is no ${header.schema.type}`];
}

/** What a schema cannot say: that the members agree with the response around them. */
function problemFaults({ status, headers, body }: Answer): string[] {
  const faults: string[] = [];
  if (body.status !== status) faults.push(`its member "status" is ${body.status}`);
  if (body.request_id !== headers['x-request-id']) faults.push('its request id is not that of the header');
  if (status === 401 && headers['www-authenticate'] === undefined)
    faults.push('the header WWW-Authenticate is missing');
  return faults;
}

/** The document lets clients meet members of later releases; a response of this one has none. */
function refuseUndeclared(schema: Json): void {
  const { properties, items, anyOf, allOf, oneOf } = schema;
  if (properties !== undefined && schema.additionalProperties === undefined)
    schema.additionalProperties = false;
  for (const inner of [
    ...Object.values(properties ?? {}),
    ...(items === undefined ? [] : [items]),
    ...[anyOf, allOf, oneOf].flatMap((list) => (Array.isArray(list) ? list : [])),
  ]) {
    refuseUndeclared(inner);
  }
}

/** The path as the router sees it: without the query, and with unreserved escapes decoded. */
function pathOf(target: string): string {
  const path = target.split('?', 1)[0] ?? '';
  try {
    return decodeURI(path);
  } catch {
    return path;
  }
}

function patternOf(template: string): RegExp {
  const segments = template.split(/\{[^}]+\}/).map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${segments.join('[^/]*')}$`);
}

function mediaType({ headers }: Answer): string {
  return headers['content-type']?.split(';', 1)[0]?.trim() ?? '';
}

/** RFC 6901 in a URI fragment. */
function escapePointer(name: string): string {
  return encodeURIComponent(name.replaceAll('~', '~0').replaceAll('/', '~1'));
}

function faultText({ instancePath, message, params }: ErrorObject): string {
  const extra = 'additionalProperty' in params ? ` (${params.additionalProperty})` : '';
  return `body${instancePath} ${message}${extra}`;
}
