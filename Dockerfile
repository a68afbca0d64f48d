# Claviger's image. test/image/ carries out these very steps, without Docker.

FROM node:24-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
COPY scripts ./scripts
RUN --mount=type=cache,target=/root/.npm npm ci --ignore-scripts
COPY tsconfig.json tsconfig.build.json ./
COPY migrations ./migrations
COPY src ./src
RUN npm run build && rm dist/.tsbuildinfo
# Whatever the umask of the checkout was: the user of the service reads everything and writes nothing.
RUN chmod -R u=rwX,go=rX package.json package-lock.json dist migrations && chmod +x dist/cli.js

FROM node:24-slim
WORKDIR /app
COPY --from=build /app/package.json /app/package-lock.json ./
# argon2 brings its compiled library in the package, so that no install script has to run.
RUN --mount=type=cache,target=/root/.npm npm ci --omit=dev --omit=optional --ignore-scripts
COPY --from=build /app/dist ./dist
COPY --from=build /app/migrations ./migrations
RUN mkdir bin && ln -s ../dist/cli.js bin/claviger
ENV NODE_ENV=production HOST=0.0.0.0 PORT=8080 PATH=/app/bin:$PATH
# The image's user "node", by number, so that Kubernetes can see that it is not root.
USER 1000:1000
EXPOSE 8080
# Of itself it asks whether it answers, not who it is: with TLS, its certificate is for another name.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s \
  CMD ["node", "-e", "require(process.env.TLS_CERT_FILE ? 'https' : 'http').get({ host: '127.0.0.1', port: process.env.PORT, path: '/healthz', rejectUnauthorized: false }, ({ statusCode }) => process.exit(statusCode === 200 ? 0 : 1)).on('error', () => process.exit(1))"]
CMD ["claviger", "serve"]
