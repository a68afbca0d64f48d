import type { SwaggerTransformObject } from '@fastify/swagger';
import type { FastifySchema } from 'fastify';
import { z } from 'zod';
import { addHeaders, HEADERS } from './document-headers.ts';
import { EXAMPLES, type Examples, PROBLEM_EXAMPLES } from './examples.ts';
import { PROBLEM_TYPE, PROBLEMS } from './problem.ts';

/*
 * From the routes' zod schemas to OpenAPI 3.1. @fastify/swagger collects the routes; `describeRoute` gives it each
 * one as JSON Schema, and `complete` adds what is the same everywhere: headers, examples, components.
 */

declare module 'fastify' {
  interface FastifySchema {
    /** The body of a route that parses it itself, so that Fastify does not look for a validator at each request. */
    documentedBody?: unknown;
    /** The request headers of a route that reads them itself, as JSON Schema. */
    documentedHeaders?: object;
  }
}

type JsonSchema = z.core.JSONSchema.BaseSchema;

interface Media {
  schema: JsonSchema;
  examples?: Examples | Record<string, { $ref: string }>;
}

interface Response {
  description: string;
  type?: 'null';
  headers?: Record<string, unknown>;
  content?: Record<string, Media>;
}

interface Operation {
  operationId: string;
  description?: string;
  security?: readonly Record<string, readonly string[]>[];
  parameters?: readonly { readonly name: string }[];
  requestBody?: { required: boolean; content: Record<string, Media> };
  responses: Record<string, Response>;
}

/** An OpenAPI document, as far as it is looked at here. */
interface Document {
  openapi: string;
  info: object;
  servers: object[];
  tags: object[];
  paths: Record<string, Record<string, Operation>>;
  components: { securitySchemes: object };
}

interface Documenter {
  /** `transform` of @fastify/swagger. */
  describeRoute(route: { schema: FastifySchema; url: string }): { schema: FastifySchema; url: string };
  /** `transformObject` of @fastify/swagger. */
  complete(document: object): ReturnType<SwaggerTransformObject>;
}

const JSON_TYPE = 'application/json';
/** What zod writes for an integer without a bound. */
const UNBOUNDED = [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER];

/** The request header of routes that are `idempotent` (idempotency.ts). */
const IDEMPOTENCY_HEADERS = {
  type: 'object',
  properties: {
    'Idempotency-Key': {
      type: 'string',
      minLength: 1,
      maxLength: 257,
      pattern: '^[\\x21-\\x7E]+$',
      description:
        '1 to 255 visible ASCII characters that you choose, such as a UUID; surrounding quotes are ignored. Whoever repeats the request with it within 24 hours, with the same service key, is given the first answer again, token included. Without it each request makes a key.',
    },
  },
} as const;

export function createDocumenter(): Documenter {
  const named = new Map<string, JsonSchema>();
  const optionalBodies = new Set<string>();

  /** A reference where the schema has a name, and every schema with a name among the components. */
  function toJsonSchema(schema: z.core.$ZodType, io: 'input' | 'output'): JsonSchema {
    const {
      $schema: _,
      $defs,
      ...root
    }: JsonSchema = z.toJSONSchema(schema, {
      io,
      unrepresentable: 'any',
      override: ({ jsonSchema }) => tidy(jsonSchema, io),
    });
    for (const [name, definition] of Object.entries($defs ?? {})) keep(name, definition);
    return typeof root.id === 'string' ? keep(root.id, root) : referToComponents(root);
  }

  function keep(name: string, { id: _, ...definition }: JsonSchema): JsonSchema {
    const component = referToComponents(definition);
    const former = named.get(name);
    if (former !== undefined && JSON.stringify(former) !== JSON.stringify(component)) {
      throw new TypeError(`two schemas have the name ${name}`);
    }
    named.set(name, component);
    return { $ref: `#/components/schemas/${name}` };
  }

  function describeBody(body: unknown, consumes: readonly string[]): Record<string, Media> {
    if (isZod(body)) {
      const schema = toJsonSchema(withoutAbsence(body), 'input');
      return Object.fromEntries(consumes.map((type) => [type, { schema }]));
    }
    return describeContent(body, 'input');
  }

  function describeContent(described: unknown, io: 'input' | 'output'): Record<string, Media> {
    const content: [string, Media][] = [];
    for (const [type, media] of Object.entries(memberOf(described, 'content') ?? {})) {
      const schema = memberOf(media, 'schema');
      if (!isZod(schema)) throw new TypeError(`${type} has no zod schema`);
      content.push([type, { schema: toJsonSchema(schema, io) }]);
    }
    return Object.fromEntries(content);
  }

  function describeResponse(response: unknown): Response {
    if (!isZod(response)) {
      const content = describeContent(response, 'output');
      const description = String(memberOf(response, 'description'));
      // @fastify/swagger takes this type for no body at all.
      return Object.keys(content).length === 0 ? { description, type: 'null' } : { description, content };
    }
    const { description, ...schema } = toJsonSchema(response, 'output');
    return { description: description ?? '', content: { [JSON_TYPE]: { schema } } };
  }

  return {
    describeRoute({ schema, url }) {
      const { documentedBody, body = documentedBody, querystring, params, response, ...more } = schema;
      const { headers, ...others } = more;
      const { consumes = [JSON_TYPE], idempotent, documentedHeaders, ...rest } = others;
      if (rest.hide === true) return { schema: { hide: true }, url };
      if (isZod(body) && z.safeParse(body, undefined).success) optionalBodies.add(rest.operationId ?? '');
      const responses = Object.entries(response ?? {}).map(([status, one]) => [
        status,
        describeResponse(one),
      ]);
      return {
        url,
        schema: {
          ...rest,
          ...(body === undefined ? {} : { body: { content: describeBody(body, consumes) } }),
          ...(isZod(querystring) ? { querystring: toJsonSchema(querystring, 'input') } : {}),
          ...(isZod(headers) ? { headers: toJsonSchema(headers, 'input') } : {}),
          ...(idempotent === true ? { headers: IDEMPOTENCY_HEADERS } : {}),
          ...(documentedHeaders === undefined ? {} : { headers: documentedHeaders }),
          ...(isZod(params) ? { params: toJsonSchema(params, 'input') } : {}),
          response: Object.fromEntries(responses),
        },
      };
    },

    complete(collected) {
      const { openapi, info, servers, tags, paths, components }: Document = JSON.parse(
        JSON.stringify(collected),
      );
      for (const operation of Object.values(paths).flatMap((path) => Object.values(path))) {
        if (operation.requestBody !== undefined) {
          operation.requestBody.required = !optionalBodies.has(operation.operationId);
        }
        addPermission(operation);
        addHeaders(operation);
        unwrapReferences(operation);
        addExamples(operation);
      }
      const schemas = Object.fromEntries([...named].sort(([one], [other]) => (one < other ? -1 : 1)));
      const { securitySchemes } = components;
      const document = {
        openapi,
        info,
        servers,
        tags,
        paths,
        components: { securitySchemes, headers: HEADERS, examples: usedExamples(paths), schemas },
      };
      // A copy without shared objects: YAML would write those as aliases.
      return JSON.parse(JSON.stringify(document));
    },
  };
}

/** The role that `security` asks for, in words: pages such as Swagger UI do not show it. */
function addPermission(operation: Operation): void {
  const [permission] = new Set(operation.security?.flatMap((scheme) => Object.values(scheme).flat()));
  if (permission === undefined) return;
  const { description = '' } = operation;
  operation.description = `${description}\n\nPermission: \`${permission}\`.`.trim();
}

/** A reference stood in an `allOf` for its description, which has moved to the response by now. */
function unwrapReferences({ responses }: Operation): void {
  for (const { content = {} } of Object.values(responses)) {
    for (const media of Object.values(content)) {
      const { allOf: [reference, ...more] = [], ...siblings } = media.schema ?? {};
      if (reference !== undefined && more.length === 0 && Object.keys(siblings).length === 0) {
        media.schema = reference;
      }
    }
  }
}

function addExamples({ operationId, requestBody, responses }: Operation): void {
  const known = EXAMPLES[operationId];
  for (const [type, media] of Object.entries(requestBody?.content ?? {})) {
    const examples = known?.request?.[type];
    if (examples !== undefined) media.examples = examples;
  }
  for (const [status, { description, content = {} }] of Object.entries(responses)) {
    for (const [type, media] of Object.entries(content)) {
      const examples =
        type === PROBLEM_TYPE
          ? problemExamples(Number(status), description)
          : known?.responses[Number(status)];
      if (examples !== undefined) media.examples = examples;
    }
  }
}

/** The example of each code of this status that the description names. */
function problemExamples(status: number, description: string): Record<string, { $ref: string }> {
  const codes = Object.entries(PROBLEMS).filter(
    ([code, problem]) => problem.status === status && description.includes(`\`${code}\``),
  );
  return Object.fromEntries(codes.map(([code]) => [code, { $ref: `#/components/examples/${code}` }]));
}

function usedExamples(paths: object): Examples {
  const text = JSON.stringify(paths);
  return Object.fromEntries(
    Object.entries(PROBLEM_EXAMPLES).filter(([code]) => text.includes(`"#/components/examples/${code}"`)),
  );
}

/** Makes what zod wrote shorter without changing what it means; called for inner schemas first. */
function tidy(schema: JsonSchema, io: 'input' | 'output'): void {
  const { documentedAs, description } = schema;
  if (typeof documentedAs === 'object') {
    for (const name of Object.keys(schema)) delete schema[name];
    Object.assign(schema, documentedAs, description === undefined ? {} : { description });
  }
  // The format says it, and the pattern of all dates is two lines long.
  if (schema.format === 'date-time') delete schema.pattern;
  if (UNBOUNDED.includes(schema.minimum ?? Number.NaN)) delete schema.minimum;
  if (UNBOUNDED.includes(schema.maximum ?? Number.NaN)) delete schema.maximum;
  delete schema.propertyNames;
  if (
    typeof schema.additionalProperties === 'object' &&
    Object.keys(schema.additionalProperties).length === 0
  ) {
    schema.additionalProperties = true;
  }
  // Later releases add members to responses, and generated clients should live with that.
  if (io === 'output' && schema.additionalProperties === false) delete schema.additionalProperties;
  mergeNull(schema);
}

/** `anyOf: [{type: T, …}, {type: null}]` is `type: [T, null], …`. */
function mergeNull(schema: JsonSchema): void {
  const [one, other, ...more] = schema.anyOf ?? [];
  if (typeof one !== 'object' || typeof other !== 'object' || more.length > 0) return;
  if (other.type !== 'null' || typeof one.type !== 'string' || 'enum' in one || 'const' in one || 'id' in one)
    return;
  const { type, ...rest } = one;
  delete schema.anyOf;
  const { description = rest.description } = schema;
  Object.assign(schema, { ...rest, type: [type, 'null'] }, description === undefined ? {} : { description });
}

/** Zod refers to `#/$defs/`. A reference with siblings becomes an `allOf`: @fastify/swagger drops the siblings. */
function referToComponents<T>(value: T): T;
function referToComponents(value: unknown): unknown {
  if (Array.isArray(value)) return value.map((element) => referToComponents(element));
  if (typeof value !== 'object' || value === null) return value;
  const copy = Object.fromEntries(
    Object.entries(value).map(([name, member]) => [name, referToComponents(member)]),
  );
  if (typeof copy.$ref !== 'string') return copy;
  const { $ref, ...siblings } = copy;
  const reference = { $ref: $ref.replace('#/$defs/', '#/components/schemas/') };
  return Object.keys(siblings).length === 0 ? reference : { allOf: [reference], ...siblings };
}

/** That a body may be left out or be `null` is said by `required: false`. */
function withoutAbsence(schema: z.core.$ZodType): z.core.$ZodType {
  return schema instanceof z.ZodOptional || schema instanceof z.ZodNullable
    ? withoutAbsence(schema.unwrap())
    : schema;
}

function isZod(value: unknown): value is z.core.$ZodType {
  return value instanceof z.core.$ZodType;
}

function memberOf(value: unknown, name: string): object | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  return Reflect.get(value, name);
}
