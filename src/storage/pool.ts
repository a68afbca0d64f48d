import pg from 'pg';

/** What the pool of connections tells of itself as it happens; metrics are made of it. Every call is cheap. */
export interface PoolObserver {
  /** A statement or a transaction got its connection, after this time. */
  connected(waitedMs: number): void;
}

type Connected = (error: Error | undefined, client: pg.PoolClient | undefined, done: Done) => void;
type Done = (release?: unknown) => void;

/** A pool that tells how long each taker waits for a connection; `query` takes its own by `connect` too. */
export class ObservedPool extends pg.Pool {
  readonly #observer: PoolObserver;

  constructor(config: pg.PoolConfig, observer: PoolObserver) {
    super(config);
    this.#observer = observer;
  }

  override connect(): Promise<pg.PoolClient>;
  override connect(callback: Connected): void;
  override connect(callback?: Connected): Promise<pg.PoolClient> | undefined {
    const askedAt = performance.now();
    const told = () => this.#observer.connected(performance.now() - askedAt);
    if (callback === undefined) {
      return super.connect().then((client) => {
        told();
        return client;
      });
    }
    super.connect((error, client, done) => {
      if (client !== undefined) told();
      callback(error, client, done);
    });
    return undefined;
  }
}
