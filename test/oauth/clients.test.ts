import { OAuth2Client } from '@badgateway/oauth2-client';
import * as oauth from 'oauth4webapi';
import * as openid from 'openid-client';
import { ClientCredentials } from 'simple-oauth2';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { listen } from '../http/listen.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import { claimsOf } from './requests.ts';

/*
 * Clients that others have written, unmodified, over a socket: what they refuse is a fault of ours.
 */

let app: TestApp;
let issuer: URL;
let key: { id: string; token: string };
let service: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ PORT: '0', FAILED_AUTH_RATE_LIMIT: 'off' });
  issuer = new URL(`http://127.0.0.1:${await listen(app)}`);
  key = await app.createKey({ scopes: ['read', 'write'] });
  service = await app.createServiceKey(['introspect']);
});
afterAll(() => app.close());

const isActive = async (token: string) => (await app.introspect(token)).body.active;

describe('oauth4webapi', () => {
  const insecure = { [oauth.allowInsecureRequests]: true };
  const discover = async () =>
    oauth.processDiscoveryResponse(
      issuer,
      await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...insecure }),
    );
  const client = () => ({ client_id: key.id });

  test.each([
    ['Basic', oauth.ClientSecretBasic],
    ['the form', oauth.ClientSecretPost],
  ] as const)(
    'finds the service, gets a token by %s, has it introspected, verifies and revokes it',
    async (_way, authOf) => {
      const server = await discover();
      const auth = authOf(key.token);
      const granted = await oauth.processClientCredentialsResponse(
        server,
        client(),
        await oauth.clientCredentialsGrantRequest(server, client(), auth, { scope: 'read' }, insecure),
      );
      expect(granted).toMatchObject({ token_type: 'bearer', expires_in: 3600, scope: 'read' });

      // As a resource server that verifies by itself (RFC 9068 §4).
      const request = new Request('http://api.example/contacts', {
        headers: { authorization: `Bearer ${granted.access_token}` },
      });
      const claims = await oauth.validateJwtAccessToken(server, request, server.issuer, insecure);
      expect(claims).toMatchObject({ client_id: key.id, sub: key.id, scope: 'read' });

      // As one that asks.
      const resource = { client_id: service.id };
      const resourceAuth = oauth.ClientSecretBasic(service.token);
      const ask = async () =>
        oauth.processIntrospectionResponse(
          server,
          resource,
          await oauth.introspectionRequest(server, resource, resourceAuth, granted.access_token, insecure),
        );
      expect(await ask()).toMatchObject({ active: true, client_id: key.id, scope: 'read', exp: claims.exp });

      await oauth.processRevocationResponse(
        await oauth.revocationRequest(server, client(), auth, granted.access_token, insecure),
      );
      expect(await ask()).toEqual({ active: false });
    },
  );

  test('reads every error', async () => {
    const server = await discover();
    const fails = async (
      secret: string,
      parameters: Record<string, string>,
      grant = 'client_credentials',
    ) => {
      const response = await oauth.genericTokenEndpointRequest(
        server,
        client(),
        oauth.ClientSecretBasic(secret),
        grant,
        parameters,
        insecure,
      );
      return oauth.processGenericTokenEndpointResponse(server, client(), response).then(
        () => 'none',
        (error) => {
          if (error instanceof oauth.ResponseBodyError) return [error.status, error.error];
          if (error instanceof oauth.WWWAuthenticateChallengeError)
            return [error.status, error.cause[0]?.scheme];
          throw error;
        },
      );
    };
    expect(await fails(key.token, { scope: 'admin' })).toEqual([400, 'invalid_scope']);
    expect(await fails(key.token, {}, 'password')).toEqual([400, 'unsupported_grant_type']);
    expect(await fails(key.token, { client_id: 'another' })).toEqual([400, 'invalid_request']);
    expect(await fails('wrong', {})).toEqual([401, 'basic']);
    const disabled = await app.createKey({ workspace_id: 'ws_disabled' });
    await app.put('/v1/workspaces/ws_disabled', { disabled: true });
    const response = await oauth.clientCredentialsGrantRequest(
      server,
      { client_id: disabled.id },
      oauth.ClientSecretPost(disabled.token),
      {},
      insecure,
    );
    await expect(
      oauth.processClientCredentialsResponse(server, { client_id: disabled.id }, response),
    ).rejects.toMatchObject({ error: 'unauthorized_client', status: 400 });
  });
});

describe('openid-client', () => {
  const discover = (id: string, token: string, auth: openid.ClientAuth) =>
    openid.discovery(issuer, id, token, auth, {
      algorithm: 'oauth2',
      execute: [openid.allowInsecureRequests],
    });

  test.each([
    ['Basic', openid.ClientSecretBasic],
    ['the form', openid.ClientSecretPost],
  ] as const)(
    'finds the service, gets a token by %s, has it introspected and revokes it',
    async (_way, authOf) => {
      const config = await discover(key.id, key.token, authOf(key.token));
      const granted = await openid.clientCredentialsGrant(config, { scope: 'write' });
      expect(granted.scope).toBe('write');
      expect(granted.expiresIn()).toBeGreaterThan(3_500);
      const asService = await discover(service.id, service.token, openid.ClientSecretBasic(service.token));
      expect(await openid.tokenIntrospection(asService, granted.access_token)).toMatchObject({
        active: true,
        client_id: key.id,
      });
      await openid.tokenRevocation(config, granted.access_token);
      expect(await openid.tokenIntrospection(asService, granted.access_token)).toEqual({ active: false });
    },
  );

  test('reads every error', async () => {
    const config = await discover(key.id, key.token, openid.ClientSecretPost(key.token));
    await expect(openid.clientCredentialsGrant(config, { scope: 'admin' })).rejects.toMatchObject({
      error: 'invalid_scope',
      status: 400,
    });
    const wrong = await discover(key.id, 'wrong', openid.ClientSecretPost('wrong'));
    await expect(openid.clientCredentialsGrant(wrong)).rejects.toMatchObject({
      cause: expect.anything(),
    });
    await expect(openid.tokenIntrospection(config, 'anything')).rejects.toBeDefined();
  });
});

describe('simple-oauth2', () => {
  const clientOf = (secret: string, authorizationMethod: 'header' | 'body') =>
    new ClientCredentials({
      client: { id: key.id, secret },
      auth: {
        tokenHost: issuer.href,
        tokenPath: '/oauth/token',
        revokePath: '/oauth/revoke',
      },
      options: { authorizationMethod },
    });

  test.each(['header', 'body'] as const)(
    'gets a token with its credentials in the %s, and revokes it',
    async (method) => {
      const granted = await clientOf(key.token, method).getToken({ scope: ['read', 'write'] });
      const token = String(granted.token.access_token);
      expect(granted.expired()).toBe(false);
      expect(claimsOf(token)).toMatchObject({ client_id: key.id, scope: 'read write' });
      await granted.revoke('access_token');
      expect(await isActive(token)).toBe(false);
    },
  );

  test('reads every error', async () => {
    await expect(clientOf('wrong', 'header').getToken({})).rejects.toMatchObject({
      output: { statusCode: 401 },
      data: { payload: { error: 'invalid_client' } },
    });
    await expect(clientOf(key.token, 'body').getToken({ scope: 'admin' })).rejects.toMatchObject({
      output: { statusCode: 400 },
      data: { payload: { error: 'invalid_scope' } },
    });
  });
});

describe('@badgateway/oauth2-client', () => {
  const clientOf = (
    credentials: { id: string; token: string },
    authenticationMethod?: 'client_secret_basic' | 'client_secret_post',
  ) =>
    new OAuth2Client({
      server: issuer.href,
      discoveryEndpoint: '/.well-known/oauth-authorization-server',
      clientId: credentials.id,
      clientSecret: credentials.token,
      ...(authenticationMethod === undefined ? {} : { authenticationMethod }),
    });

  test.each([undefined, 'client_secret_basic', 'client_secret_post'] as const)(
    'finds the service, gets a token (%s), has it introspected and revokes it',
    async (method) => {
      const client = clientOf(key, method);
      const granted = await client.clientCredentials({ scope: ['read'] });
      expect(claimsOf(granted.accessToken).scope).toBe('read');
      expect(granted.expiresAt).toBeGreaterThan(Date.now() + 3_500_000);
      const asService = clientOf(service, 'client_secret_basic');
      expect(await asService.introspect(granted)).toMatchObject({ active: true, client_id: key.id });
      await client.revoke(granted, 'access_token');
      expect(await asService.introspect(granted)).toEqual({ active: false });
    },
  );

  test('reads every error', async () => {
    await expect(clientOf({ ...key, token: 'wrong' }).clientCredentials()).rejects.toMatchObject({
      oauth2Code: 'invalid_client',
      httpCode: 401,
    });
    await expect(clientOf(key).clientCredentials({ scope: ['admin'] })).rejects.toMatchObject({
      oauth2Code: 'invalid_scope',
      httpCode: 400,
    });
  });
});
